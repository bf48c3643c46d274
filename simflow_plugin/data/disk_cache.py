"""The cache of fetched and derived files: its folder and its keys."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simflow_plugin.errors import DataError
from simflow_plugin.files import text_digest


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
    """Return (bytes, time of the last change in ns) of a file, what tells without reading it that it is another.

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
