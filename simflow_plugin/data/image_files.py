"""Base of data sets of encoded image files: labels, the split, decoding and cropping one image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from simflow_plugin import options
from simflow_plugin.contracts import NO_LABEL, Example
from simflow_plugin.data.disk_cache import fingerprint
from simflow_plugin.data.images import center_crop
from simflow_plugin.data.split import split_indices
from simflow_plugin.errors import DataError

DEFAULT_MAX_CORRUPT_SHARE = 0.01


class FileOptions(options.Options):
    """Options that all data sets of files share."""

    labels: bool | Literal["auto"] = Field("auto", description="auto: labelled if the data has labels")
    test_share: float = Field(
        0.05, gt=0, lt=1, description="held out where the data brings no split of its own"
    )
    split_seed: int = Field(0, description="which images are held out; the run's seed does not move them")
    max_corrupt_share: float = Field(
        DEFAULT_MAX_CORRUPT_SHARE,
        ge=0,
        le=1,
        description="of unreadable images; more than that, and more than one, stops the run. 0 allows none",
    )


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
        class_names: None for an unlabelled data set.
        image_size: in pixels.
        options: shared options.
    """

    def __init__(
        self,
        names: Sequence[str],
        labels: Tensor,
        class_names: list[str] | None,
        image_size: int,
        options: FileOptions,
    ) -> None:
        self.names = PackedStrings(names)
        self.labels = labels
        self.class_names = class_names
        self.num_classes = len(class_names) if class_names is not None else None
        self.image_size = image_size
        self.max_corrupt_share = options.max_corrupt_share

    @abstractmethod
    def read_image(self, index: int) -> Image.Image:
        """Return one RGB image, any shape.

        Raises:
            CorruptImage: if it cannot be read.
        """

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        return Example(center_crop(self.read_image(index), self.image_size), int(self.labels[index]))

    def content_facts(self) -> dict[str, Any]:
        """Return what tells these images, in this order, from others; what is cached of them depends on it."""
        return {"images": fingerprint({"names": list(self.names), "labels": self.labels.tolist()})}

    def describe(self, index: int) -> str:
        """Name one image for a message."""
        return self.names[index]


def choose_labels(where: str, labels: Sequence[int] | None, wanted: bool | str) -> Tensor | None:
    """Apply the option `labels` to what the data has.

    Args:
        where: the data set, for messages.
        labels: of every image, or None if the data has none.
        wanted: True, False or 'auto'.
    Returns:
        (N,) int64, or None for an unlabelled data set.
    Raises:
        DataError: if labels are wanted and missing, or all are of one class.
    """
    if wanted is False or (labels is None and wanted == "auto"):
        return None
    if labels is None:
        raise DataError(
            f"{where}: data.labels is true, but there are no labels. Add them, or set data.labels: false."
        )
    try:
        found = torch.as_tensor(labels, dtype=torch.int64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{where}: labels must be whole numbers, found {labels[0]!r}. Encode the column as class labels, or set "
            "data.labels: false."
        ) from error
    if len(found.unique()) < 2:
        raise DataError(
            f"{where}: all {len(found)} images are of one class: there is nothing to condition on. Add "
            "another class, or train without labels: data.labels: false."
        )
    return found


def take_split(
    where: str, num_images: int, labels: Tensor | None, split: str, options: FileOptions
) -> tuple[Tensor, Tensor]:
    """Cut a data set without a split of its own.

    Returns:
        rows (M,) int64 of the split, and the labels (M,) of these rows.
    Raises:
        DataError: if nothing is left for the split.
    """
    targets = labels if labels is not None else torch.full((num_images,), NO_LABEL, dtype=torch.int64)
    rows = split_indices(targets, split, options.test_share, options.split_seed)
    if not len(rows):
        raise DataError(
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


def numbered_classes(num_classes: int | None) -> list[str] | None:
    """Name classes by their numbers, where the data has no better names."""
    return [str(number) for number in range(num_classes)] if num_classes is not None else None
