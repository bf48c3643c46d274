"""Base of data sets of encoded image files: options, the split, decoding and cropping one image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from simflow_plugin.contracts import NO_LABEL, Example
from simflow_plugin.data import decoding
from simflow_plugin.data.decoding import CorruptImage, background_colour, decode_image
from simflow_plugin.data.disk_cache import fingerprint
from simflow_plugin.data.labels import Classes
from simflow_plugin.data.options import FileOptions
from simflow_plugin.data.pixels import center_crop
from simflow_plugin.data.split import split_indices
from simflow_plugin.errors import EmptySplit


class PackedStrings(Sequence[str]):
    """A list of strings as two arrays.

    Worker processes share the pages of an array; a list of a million strings they would copy one by one,
    because reading a Python object writes its reference count.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        encoded = [text.encode("utf-8", "surrogateescape") for text in strings]
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index):  # type: ignore[no-untyped-def, override]
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start = self._ends[index - 1] if index % len(self) else 0
        return self._bytes[start : self._ends[index]].tobytes().decode("utf-8", "surrogateescape")


class FileDataset(ABC):
    """Encoded images somewhere, decoded one at a time, cropped by ADM's rule.

    Args:
        names: of the images, unique; also what a message calls them.
        labels: (N,), int64, `NO_LABEL` where there is none.
        classes: of training; None for an unlabelled data set.
        image_size: in pixels.
        options: shared options.
        ignored: number of entries of the source that are no image, by kind.
    """

    def __init__(
        self,
        names: Sequence[str],
        labels: Tensor,
        classes: Classes | None,
        image_size: int,
        options: FileOptions,
        ignored: Mapping[str, int] | None = None,
    ) -> None:
        self.names = PackedStrings(names)
        self.labels = labels
        self.class_names = classes.names if classes is not None else None
        self.num_classes = len(classes.names) if classes is not None else None
        self.image_size = image_size
        self.max_corrupt_share = options.max_corrupt_share
        self.background = background_colour(options.background)
        self.ignored = dict(ignored or {})

    @abstractmethod
    def read_content(self, index: int) -> bytes:
        """Return the encoded bytes of one image.

        Raises:
            CorruptImage: if they cannot be read.
        """

    def read_image(self, index: int) -> Image.Image:
        """Return one RGB image, any shape.

        Raises:
            CorruptImage: if it cannot be read.
        """
        return decode_image(self.read_content(index), self.describe(index), self.image_size, self.background)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        image = self.read_image(index)
        try:
            return Example(center_crop(image, self.image_size), int(self.labels[index]))
        except (MemoryError, ValueError) as error:
            raise CorruptImage(f"{self.describe(index)}: cannot be scaled: {error}") from error

    def content_facts(self) -> dict[str, Any]:
        """Return what tells these images, in this order, from others; what is cached of them depends on it."""
        images = {"names": list(self.names), "labels": self.labels.tolist()}
        return {"images": fingerprint(images), "decoding": decoding.VERSION}

    def describe(self, index: int) -> str:
        """Name one image for a message."""
        return self.names[index]


def take_split(
    where: str, num_images: int, labels: Tensor | None, split: str, options: FileOptions
) -> tuple[Tensor, Tensor]:
    """Cut a data set without a split of its own.

    Returns:
        rows (M,) int64 of the split, and the labels (M,) of these rows.
    Raises:
        EmptySplit: if nothing is left for the split.
    """
    targets = labels if labels is not None else torch.full((num_images,), NO_LABEL, dtype=torch.int64)
    rows = split_indices(targets, split, options.test_share, options.split_seed)
    if not len(rows):
        raise EmptySplit(
            f"{where}: {num_images} images leave none for the {split} split at data.test_share "
            f"{options.test_share}. Add images, or change data.test_share."
        )
    return rows, targets[rows]


def own_or_held_out(
    where: object,
    num_images: int,
    labels: Tensor | None,
    split: str,
    options: FileOptions,
    has_own_split: bool,
) -> tuple[list[int], Tensor]:
    """Return the rows of one split and their labels: all rows of a data set that brings its own split."""
    if not has_own_split:
        rows, targets = take_split(str(where), num_images, labels, split, options)
        return rows.tolist(), targets
    unlabelled = torch.full((num_images,), NO_LABEL, dtype=torch.int64)
    return list(range(num_images)), labels if labels is not None else unlabelled
