"""Fashion-MNIST: 70,000 grey images of clothes, 28x28, 10 classes, from idx files found or downloaded."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

from simflow_plugin import registry
from simflow_plugin.contracts import DataContext
from simflow_plugin.data.disk_cache import cache_folder
from simflow_plugin.data.idx import read_idx
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


@registry.DATASETS.register("fashion-mnist")
class FashionMnist(InMemoryDataset, FashionMnistFacts):
    """Fashion-MNIST at 28x28 as it is, at 32x32 with a border of 2 black pixels, else resized from 32x32.

    Args:
        options: where its files are, whether to download them.
        context: image size, split (its own train and test files).
    Raises:
        DataError: if the files are missing (naming every place tried), damaged, or not images of 28x28.
    Reference:
        Xiao, Rasul and Vollgraf, arXiv:1708.07747.
    """

    def __init__(self, options: FashionMnistOptions, context: DataContext) -> None:
        prefix = PREFIX_BY_SPLIT[context.split]
        folder = find_fashion_mnist(options.root, options.download)
        images = read_idx(find_file(folder, f"{prefix}-images-idx3-ubyte"), (None, NATIVE_SIZE, NATIVE_SIZE))
        labels = read_idx(find_file(folder, f"{prefix}-labels-idx1-ubyte"), (images.shape[0],))
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

    Tried in this order: `root`, $SIMFLOW_DATA/fashion-mnist, the folder of the Debian package, torchvision's
    own folder in the cache. With `root` only that folder counts: a typing error must not be answered with
    other data.

    Raises:
        DataError: naming the places tried and the ways to get the files.
    """
    cache = cache_folder()
    downloaded = cache / "FashionMNIST" / "raw"
    places = [Path(root).expanduser()] if root else [*_environment_folder(), DEBIAN_FOLDER, downloaded]
    for place in places:
        if all(find_file(place, name, missing_ok=True) for name in file_names()):
            return place
    if download and not root:
        _download(cache)
        return downloaded
    raise DataError(
        f"fashion-mnist: no folder with the files {', '.join(file_names())} (.gz or not). Tried: "
        f"{', '.join(map(str, places))}. Install the Debian package {DEBIAN_PACKAGE} (apt install "
        f"{DEBIAN_PACKAGE}), set data.download: true to fetch them by torchvision, or set data.root to the "
        "folder you have them in."
    )


def file_names() -> list[str]:
    """Return the names of the four files, without .gz."""
    return [
        f"{prefix}-{kind}-ubyte"
        for prefix in PREFIX_BY_SPLIT.values()
        for kind in ("images-idx3", "labels-idx1")
    ]


def find_file(folder: Path, name: str, missing_ok: bool = False) -> Path | None:
    """Return `folder/name.gz` or `folder/name`, whichever is there."""
    for candidate in (folder / f"{name}.gz", folder / name):
        if candidate.is_file():
            return candidate
    if missing_ok:
        return None
    raise DataError(f"{folder}: {name} (.gz or not) is missing.")


def _environment_folder() -> list[Path]:
    root = os.environ.get("SIMFLOW_DATA")
    return [Path(root) / "fashion-mnist"] if root else []


def _download(cache: Path) -> None:
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(str(cache), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"fashion-mnist: the download into {cache} failed: {error}. Install the Debian package "
            f"{DEBIAN_PACKAGE}, or copy the four idx files into a folder and set data.root to it."
        ) from error
