"""A data set that fits into memory: one uint8 tensor, indexed a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from simflow_plugin.contracts import Example
from simflow_plugin.data.disk_cache import tensors_digest
from simflow_plugin.errors import DataError, ShapeError


class InMemoryDataset:
    """Images and labels as two tensors.

    Args:
        images: (N, 1 or 3, H, W), uint8; grey images stay one channel here and leave with three.
        labels: (N,), int64.
        class_names: one per class, in the order of the labels.
        name: of the data set, for messages and cache keys.
    Raises:
        ShapeError: if images or labels have another shape or type.
        DataError: if a label is none of the classes.
    """

    def __init__(self, images: Tensor, labels: Tensor, class_names: list[str], name: str) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ShapeError(
                f"{name}: images are {images.dtype} {tuple(images.shape)}, expected uint8 (N, 1 or 3, H, W)."
            )
        if labels.shape != images.shape[:1]:
            raise ShapeError(
                f"{name}: labels are {tuple(labels.shape)}, expected one for each of {len(images)} images."
            )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(class_names):
            raise DataError(
                f"{name}: labels from {int(labels.min())} to {int(labels.max())}, but there are {len(class_names)} "
                f"classes, 0 to {len(class_names) - 1}. Is the file of labels damaged?"
            )
        self.name = name
        self.labels = labels.to(torch.int64)
        self.class_names: list[str] | None = class_names
        self.num_classes: int | None = len(class_names)
        self._images = images

    def __len__(self) -> int:
        return self._images.shape[0]

    def __getitem__(self, index: int) -> Example:
        return Example(self._images[index].expand(3, -1, -1), int(self.labels[index]))

    def read_batch(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Return uint8 images (B, 3, H, W) and int64 labels (B,) in one indexing operation."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return self._images[rows].expand(-1, 3, -1, -1), self.labels[rows]

    def read_content(self, index: int) -> bytes:
        """Return the pixels of one image."""
        return self._images[index].contiguous().numpy().tobytes()

    def content_facts(self) -> dict[str, Any]:
        """Return a digest of every pixel and label; what is cached of the images depends on it."""
        return {"images": tensors_digest({"images": self._images, "labels": self.labels})}

    def describe(self, index: int) -> str:
        """Name one image for a message."""
        return f"{self.name}[{index}]"
