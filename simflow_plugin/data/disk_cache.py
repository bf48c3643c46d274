"""The cache of fetched and derived files: its folder and its keys."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from simflow_plugin.errors import DataError
from simflow_plugin.files import replacing, text_digest

logger = logging.getLogger(__name__)

DIGEST = "sha256"


def cache_folder() -> Path:
    """Return where fetched and derived data goes: $SIMFLOW_DATA, else ~/.cache/simflow/data."""
    return Path(os.environ.get("SIMFLOW_DATA") or Path.home() / ".cache" / "simflow" / "data")


def fingerprint(facts: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that depend on every key and value of `facts`, not on their order."""
    text = json.dumps(facts, sort_keys=True, default=str)
    return text_digest(text)


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and bytes of `tensors`, on any device, in any order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_facts(path: Path) -> tuple[int, int]:
    """Return (bytes, time of the last change in ns) of a file, which change where its content does.

    Raises:
        DataError: if it is gone.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be looked up: {error}. Was it moved or removed meanwhile?"
        ) from error
    return status.st_size, status.st_mtime_ns


def save_checked(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors with their digest, for `load_checked`.

    Raises:
        DataError: if the file cannot be written.
    """
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with replacing(path, DataError) as part:
        save_file(contiguous, part, {DIGEST: tensors_digest(contiguous)})


def load_checked(path: Path) -> dict[str, Tensor] | None:
    """Read what `save_checked` wrote; None, and the file is removed, if it is torn or a bit of it has flipped."""
    try:
        with safe_open(path, framework="pt") as file:
            digest = (file.metadata() or {}).get(DIGEST)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if digest == tensors_digest(tensors):
            return tensors
        problem = "its content does not match its checksum"
    except (OSError, SafetensorError) as error:
        problem = str(error)
    logger.warning("%s: a damaged cache (%s); it is made anew", path, problem)
    path.unlink(missing_ok=True)
    return None
