"""Base of data sets of encoded image files: options, the split, decoding and cropping one image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageColor

from simflow_plugin.contracts import NO_LABEL, DataContext, Example
from simflow_plugin.data import decoding
from simflow_plugin.data.decoding import CorruptImage, decode_image
from simflow_plugin.data.disk_cache import fingerprint
from simflow_plugin.data.labels import Key, number_labels
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

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        start = self._ends[index - 1] if index % len(self) else 0
        return self._bytes[start : self._ends[index]].tobytes().decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class ListedImages:
    """The images of a source, before a split is cut from them.

    Args:
        where: the source, for messages.
        names: of the images, unique; also what a message calls them.
        keys: of each image the label as the source has it; None where there are none, or none are wanted.
        training: labels of the training images, by which classes are numbered; `keys` where these are among them.
        is_split: whether these images are one split; otherwise a share is held out.
        declared: the source's own order of classes; None: sorted.
        ignored: number of entries of the source that are no image, by kind.
    """

    where: str
    names: Sequence[str]
    keys: Sequence[Key] | None
    training: Sequence[Key] | None
    is_split: bool
    declared: Sequence[Key] | None = None
    ignored: Mapping[str, int] = field(default_factory=dict)


class FileDataset(ABC):
    """Encoded images somewhere, decoded one at a time, cropped by ADM's rule.

    Args:
        listed: images of the source.
    Attributes:
        rows: (M,) int64, of the listed images those of the split.
        labels: (M,), int64, `NO_LABEL` where there is none.
    Raises:
        EmptySplit: if no image is left for the split.
        DataError: if the labels do not fit together; see `number_labels`.
    """

    def __init__(self, listed: ListedImages, options: FileOptions, context: DataContext) -> None:
        num_images = len(listed.names)
        labels, self.class_names = number_labels(
            listed.where, listed.keys, listed.training, options.labels, listed.names, listed.declared
        )
        if labels is None:
            labels = torch.full((num_images,), NO_LABEL, dtype=torch.int64)
        rows = torch.arange(num_images)
        if not listed.is_split:
            rows = split_indices(labels, context.split, options.test_share, options.split_seed)
        if not len(rows):
            raise EmptySplit(
                f"{listed.where}: {num_images} images leave none for the {context.split} split at data.test_share "
                f"{options.test_share}. Add images, or change data.test_share."
            )
        self.rows = rows.numpy()
        self.names = PackedStrings([listed.names[row] for row in rows.tolist()])
        self.labels = labels[rows]
        self.num_classes = None if self.class_names is None else len(self.class_names)
        self.image_size = context.image_size
        self.max_corrupt_share = options.max_corrupt_share
        self.background = ImageColor.getrgb(options.background)[:3]
        self.ignored = dict(listed.ignored)

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
        """Return the identity of these images in this order; what is cached of them depends on it."""
        images = {"names": list(self.names), "labels": self.labels.tolist()}
        return {"images": fingerprint(images), "decoding": decoding.VERSION}

    def describe(self, index: int) -> str:
        """Name one image for a message."""
        return self.names[index]
