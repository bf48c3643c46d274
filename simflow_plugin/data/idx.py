"""The idx format of MNIST and its kin: a magic number, sizes in big-endian, then the bytes.

Magic: two zero bytes, a type code (8 = unsigned byte), the number of axes; then one uint32 per axis.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from simflow_plugin.errors import DataError

UNSIGNED_BYTE = 8


def read_idx(path: Path | None, shape: Sequence[int | None]) -> Tensor:
    """Read one idx file of unsigned bytes, gzip-compressed or not.

    Args:
        path: the file.
        shape: expected; None for an axis of any length.
    Returns:
        uint8 tensor.
    Raises:
        DataError: if the magic number, the shape or the length is wrong, or the compression is damaged.
    """
    assert path is not None
    content = _read(path)
    expected = bytes((0, 0, UNSIGNED_BYTE, len(shape)))
    if content[:4] != expected:
        raise DataError(
            f"{path}: not an idx file of unsigned bytes with {len(shape)} axes: it starts with "
            f"{content[:4].hex() or '(nothing)'}, expected {expected.hex()}. Fetch the file again."
        )
    header = 4 + 4 * len(shape)
    if len(content) < header:
        raise DataError(f"{path}: cut off inside its header ({len(content)} bytes). Fetch the file again.")
    found = struct.unpack(f">{len(shape)}I", content[4:header])
    if any(want is not None and want != have for want, have in zip(shape, found, strict=True)):
        wanted = " x ".join("any" if size is None else str(size) for size in shape)
        raise DataError(
            f"{path}: holds {' x '.join(map(str, found))}, expected {wanted}. Is it of another data set?"
        )
    if len(content) - header != int(np.prod(found)):
        raise DataError(
            f"{path}: {len(content) - header} bytes of data, but its header promises {int(np.prod(found))}. "
            "Fetch the file again."
        )
    return torch.frombuffer(bytearray(content[header:]), dtype=torch.uint8).reshape(found)


def _read(path: Path) -> bytes:
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                return file.read()
        return path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: unreadable: {error}. Fetch the file again.") from error
