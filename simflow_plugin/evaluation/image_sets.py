"""Images that others made, as they are: a folder of image files, or the `.npz` of the ADM evaluation suite.

Nothing is cropped or scaled here: extractors scale images to their own size. Of a `.npz` one batch at a time is in
memory.
"""

from __future__ import annotations

import itertools
import math
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from simflow_plugin.data.decoding import decode_image
from simflow_plugin.data.disk_cache import file_facts
from simflow_plugin.data.folder_scan import scan_folder
from simflow_plugin.errors import EvaluationError

IMAGES_KEY = "arr_0"


@dataclass(frozen=True)
class ImageSet:
    """Images of a folder or file.

    Args:
        path: of the folder or file.
        count: of images.
        files: name, bytes and time of the last change of each file, which tell without reading that one is another.
        read: (numbers of images, at most how many at a time) -> their uint8 tensors (B, 3, H, W), each of one size.
    """

    path: Path
    count: int
    files: tuple[tuple[str, int, int], ...]
    read: Callable[[range, int], Iterator[Tensor]]

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield all images in order, at most `size` at a time: uint8 tensors (B, 3, H, W)."""
        return self.read(range(self.count), size)


def open_images(path: Path, option: str) -> ImageSet:
    """Find the images of a folder (below it, too) or of a `.npz` file, `arr_0` (N, H, W, 3) uint8.

    Raises:
        DataError: if a folder holds no image.
        EvaluationError: if there is no such folder or file, or the file holds no such array.
    """
    if path.is_dir():
        names = scan_folder(path).paths
        files = tuple((name, *file_facts(path / name)) for name in names)
        return ImageSet(path, len(names), files, lambda numbers, size: _decoded(path, names, numbers, size))
    if not path.is_file():
        raise EvaluationError(f"{option} {path}: no such folder or file.")
    if path.suffix != ".npz":
        raise EvaluationError(
            f"{option} {path}: expected a folder of images, or an .npz file with {IMAGES_KEY}."
        )
    with _array(path, option) as (_, shape):
        files = ((path.name, *file_facts(path)),)
        return ImageSet(path, shape[0], files, lambda numbers, size: _rows(path, option, numbers, size))


def _decoded(folder: Path, names: list[str], numbers: range, batch_size: int) -> Iterator[Tensor]:
    def images() -> Iterator[Tensor]:
        for number in numbers:
            file = folder / names[number]
            pixels = np.array(decode_image(file.read_bytes(), str(file)))
            yield torch.from_numpy(pixels).permute(2, 0, 1)

    for _, same in itertools.groupby(images(), key=lambda image: image.shape):
        while batch := list(itertools.islice(same, batch_size)):
            yield torch.stack(batch)


def _rows(path: Path, option: str, numbers: range, batch_size: int) -> Iterator[Tensor]:
    with _array(path, option) as (entry, (count, *shape)):
        image_bytes = math.prod(shape)
        entry.seek(entry.tell() + numbers.start * image_bytes)
        for start in range(numbers.start, numbers.stop, batch_size):
            rows = min(batch_size, numbers.stop - start)
            content = entry.read(rows * image_bytes)
            if len(content) < rows * image_bytes:
                raise EvaluationError(
                    f"{option} {path}: ends before image {start + rows} of {count}; it is torn."
                )
            images = np.frombuffer(content, np.uint8).reshape(rows, *shape)
            yield torch.from_numpy(images.copy()).permute(0, 3, 1, 2)


@contextmanager
def _array(path: Path, option: str) -> Iterator[tuple[IO[bytes], tuple[int, ...]]]:
    """Give the stream of the pixels and the shape (N, H, W, 3) that its header states."""
    try:
        with zipfile.ZipFile(path) as archive:
            keys = [name.removesuffix(".npy") for name in archive.namelist()]
            if IMAGES_KEY not in keys:
                raise EvaluationError(
                    f"{option} {path}: expected images under the key {IMAGES_KEY}, found {', '.join(sorted(keys))}."
                )
            with archive.open(f"{IMAGES_KEY}.npy") as entry:
                shape, is_fortran, dtype = _header(entry)
                if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or is_fortran or 0 in shape:
                    raise EvaluationError(
                        f"{option} {path}: {IMAGES_KEY} is {dtype} of shape {shape}; expected uint8 images, "
                        "(N, H, W, 3) in C order."
                    )
                yield entry, shape
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise EvaluationError(f"{option} {path}: cannot be read, perhaps torn: {error}") from error


def _header(entry: IO[bytes]) -> tuple[tuple[int, ...], bool, Any]:
    read = (
        np.lib.format.read_array_header_1_0
        if np.lib.format.read_magic(entry) == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    return read(entry)
