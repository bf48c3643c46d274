"""A checksum for every block of rows of an array on disk, checked when a row of it is first read.

Arrays of features of a million images are too large to be read for a check when they are opened; a flipped bit in one
would train on for weeks. A block is some rows, of about `BLOCK_BYTES`.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from simflow_plugin.errors import DataError

BLOCK_BYTES = 1 << 18


class BlockChecksums:
    """Checks blocks of `values`, each once.

    Args:
        values: (V, N, ...), memory-mapped.
        expected: (V, number of blocks) uint32, CRC-32 of each.
        place: folder, for messages.
    Raises:
        DataError: if `expected` has another shape or type.
    """

    def __init__(self, values: np.ndarray, expected: np.ndarray, place: Path) -> None:
        self._values, self._expected, self._place = values, expected, place
        self._rows = rows_per_block(values)
        shape = (values.shape[0], -(-values.shape[1] // self._rows))
        if expected.shape != shape or expected.dtype != np.uint32:
            raise DataError(
                f"{place}: {expected.dtype} {expected.shape} checksums, expected uint32 {shape}. Delete the folder; it "
                "will be built again."
            )
        self._is_checked = np.zeros(shape, dtype=bool)

    def check(self, views: np.ndarray, rows: np.ndarray) -> None:
        """Check the blocks that hold (views[i], rows[i]).

        Raises:
            DataError: if one is not what was written.
        """
        blocks = rows // self._rows
        unchecked = ~self._is_checked[views, blocks]
        for view, block in {*zip(views[unchecked].tolist(), blocks[unchecked].tolist(), strict=True)}:
            if checksum(self._values, view, block) != self._expected[view, block]:
                first, last = block * self._rows, min((block + 1) * self._rows, self._values.shape[1]) - 1
                raise DataError(
                    f"{self._place}: the values of images {first} to {last} are not what was written: they do not "
                    "match their checksum. Is the disk failing? Delete the folder; it will be built again."
                )
            self._is_checked[view, block] = True


def rows_per_block(values: np.ndarray) -> int:
    """Return how many rows of (V, N, ...) make a block."""
    row_bytes = values.itemsize * int(np.prod(values.shape[2:]))
    return max(1, BLOCK_BYTES // max(1, row_bytes))


def checksum(values: np.ndarray, view: int, block: int) -> int:
    """Return the CRC-32 of one block of (V, N, ...)."""
    rows = rows_per_block(values)
    return zlib.crc32(np.ascontiguousarray(values[view, block * rows : (block + 1) * rows]).data)


def all_checksums(values: np.ndarray) -> np.ndarray:
    """Return the CRC-32 of every block of (V, N, ...), (V, number of blocks) uint32."""
    num_blocks = -(-values.shape[1] // rows_per_block(values))
    found = [
        [checksum(values, view, block) for block in range(num_blocks)] for view in range(values.shape[0])
    ]
    return np.array(found, dtype=np.uint32)
