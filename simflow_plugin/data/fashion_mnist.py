"""Fashion-MNIST: 70,000 grey images of clothes, 28x28, 10 classes, from idx files found or downloaded.

An idx file: two zero bytes, a type code (8 = unsigned byte), the number of axes; one big-endian uint32 per axis; the
bytes.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from simflow_plugin import registry
from simflow_plugin.contracts import DataContext
from simflow_plugin.data.disk_cache import cache_folder
from simflow_plugin.data.in_memory import InMemoryDataset
from simflow_plugin.data.options import FashionMnistFacts, FashionMnistOptions
from simflow_plugin.data.pixels import resize_batch
from simflow_plugin.errors import DataError

CLASS_NAMES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
DEBIAN_PACKAGE = "dataset-fashion-mnist"
NATIVE_SIZE, PADDED_SIZE = 28, 32
PREFIX_BY_SPLIT = {"train": "train", "test": "t10k"}
IMAGES, LABELS = "{}-images-idx3-ubyte", "{}-labels-idx1-ubyte"
FILES = [name.format(prefix) for prefix in PREFIX_BY_SPLIT.values() for name in (IMAGES, LABELS)]
"""Each with or without .gz at its end."""
UNSIGNED_BYTE = 8


@registry.DATASETS.register("fashion-mnist")
class FashionMnist(InMemoryDataset, FashionMnistFacts):
    """Fashion-MNIST at 28x28 as it is, at 32x32 with a border of 2 black pixels, else resized from 32x32.

    Args:
        context: image size, split (its own train and test files).
    Raises:
        DataError: if the files are missing (naming every place tried), damaged, or not images of 28x28.
    Reference:
        Xiao, Rasul and Vollgraf, arXiv:1708.07747.
    """

    def __init__(self, options: FashionMnistOptions, context: DataContext) -> None:
        prefix = PREFIX_BY_SPLIT[context.split]
        folder = find_fashion_mnist(options.root, options.download)
        images = read_idx(file_of(folder, IMAGES.format(prefix)), (None, NATIVE_SIZE, NATIVE_SIZE))
        labels = read_idx(file_of(folder, LABELS.format(prefix)), (len(images),))
        self._originals = images
        super().__init__(fit(images[:, None], context.image_size), labels, CLASS_NAMES, "fashion-mnist")

    def read_content(self, index: int) -> bytes:
        """Return the original's bytes: resizing may round otherwise on another machine."""
        return self._originals[index].numpy().tobytes()


def fit(images: Tensor, size: int) -> Tensor:
    """Bring uint8 images (N, 1, 28, 28) to (N, 1, size, size)."""
    if size == NATIVE_SIZE:
        return images
    border = (PADDED_SIZE - NATIVE_SIZE) // 2
    return resize_batch(F.pad(images, (border,) * 4), size)


def find_fashion_mnist(root: str | None, download: bool) -> Path:
    """Return the folder that holds the four files.

    Tried in this order: `root`, `fashion-mnist` in the cache ($SIMFLOW_DATA), the folder of the Debian package,
    torchvision's own folder in the cache. With `root` only that folder counts: a typing error must not be answered with
    other data.

    Raises:
        DataError: naming the places tried and the ways to get the files.
    """
    cache = cache_folder()
    downloaded = cache / "FashionMNIST" / "raw"
    places = [Path(root).expanduser()] if root else [cache / "fashion-mnist", DEBIAN_FOLDER, downloaded]
    for place in places:
        if all(file_of(place, name).is_file() for name in FILES):
            return place
    if download and not root:
        _download(cache)
        return downloaded
    raise DataError(
        f"fashion-mnist: no folder with the files {', '.join(FILES)} (.gz or not). Tried: "
        f"{', '.join(map(str, places))}. Install the Debian package {DEBIAN_PACKAGE} (apt install "
        f"{DEBIAN_PACKAGE}), set data.download: true to fetch them by torchvision, or set data.root to the "
        "folder you have them in."
    )


def file_of(folder: Path, name: str) -> Path:
    """Return `folder/name.gz` if it is there, else `folder/name`."""
    compressed = folder / f"{name}.gz"
    return compressed if compressed.is_file() else folder / name


def read_idx(path: Path, shape: Sequence[int | None]) -> Tensor:
    """Read one idx file of unsigned bytes, gzip-compressed or not.

    Args:
        shape: expected; None for an axis of any length.
    Returns:
        uint8 tensor.
    Raises:
        DataError: if the magic number, the shape or the length is wrong, or the compression is damaged.
    """
    again = "Fetch the file again."
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: unreadable: {error}. {again}") from error
    magic, header = bytes((0, 0, UNSIGNED_BYTE, len(shape))), 4 + 4 * len(shape)
    if content[:4] != magic[: len(content)]:
        raise DataError(
            f"{path}: not an idx file of unsigned bytes with {len(shape)} axes: it starts with {content[:4].hex()}, "
            f"expected {magic.hex()}. {again}"
        )
    if len(content) < header:
        raise DataError(f"{path}: cut off inside its header ({len(content)} bytes). {again}")
    found = struct.unpack_from(f">{len(shape)}I", content, 4)
    if any(want not in (None, have) for want, have in zip(shape, found, strict=True)):
        wanted = " x ".join("any" if size is None else str(size) for size in shape)
        raise DataError(
            f"{path}: holds {' x '.join(map(str, found))}, expected {wanted}. Is it of another data set?"
        )
    if len(content) - header != math.prod(found):
        raise DataError(
            f"{path}: {len(content) - header} bytes of data, but its header promises {math.prod(found)}. {again}"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).reshape(found).copy())


def _download(cache: Path) -> None:
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(str(cache), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"fashion-mnist: the download into {cache} failed: {error}. Install the Debian package "
            f"{DEBIAN_PACKAGE}, or copy the four idx files into a folder and set data.root to it."
        ) from error
