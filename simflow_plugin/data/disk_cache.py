"""Files that can be made again: where they go, how they are keyed, how they appear in one piece."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from safetensors import SafetensorError
from torch import Tensor

from simflow_plugin.errors import DataError
from simflow_plugin.files import mode_of_new_files


def cache_folder() -> Path:
    """Return where fetched and derived data goes: $SIMFLOW_DATA, else ~/.cache/simflow/data."""
    return Path(os.environ.get("SIMFLOW_DATA") or Path.home() / ".cache" / "simflow" / "data")


def fingerprint(facts: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that depend on every key and value of `facts`, not on their order."""
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


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


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file, then give it its name: readers see all of it or nothing.

    Processes that write the same file at once do no harm: each has its own temporary name, and the last one
    wins.

    Raises:
        DataError: if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        temporary.chmod(mode_of_new_files(path.parent))
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except URLError:
        raise  # an OSError of the source, not of the file
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
