"""Real images for a report: held-out ones of every class in turn, and the training images nearest to samples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simflow_plugin.contracts import HasLabels, ImageDataset
from simflow_plugin.data.decoding import CorruptImage
from simflow_plugin.data.order import sample_rows

MAX_COMPARED = 5000
"""Training images that samples are compared with."""
CHUNK = 256

Pixels = NDArray[np.uint8]
"""Images (N, H, W, 3)."""


def rows_by_class(dataset: ImageDataset, classes: Iterable[int], per_class: int) -> list[list[int]]:
    """Return up to `per_class` readable images of each class as row numbers; none of a split without labels."""
    if not isinstance(dataset, HasLabels):
        return [[] for _ in classes]
    rows = [(dataset.labels == label).nonzero().flatten().tolist() for label in classes]
    return [_readable(dataset, of_class, per_class) for of_class in rows]


def rows_in_turn(dataset: ImageDataset, num_classes: int | None, count: int) -> list[int]:
    """Return up to `count` readable images, the classes in turn; without labels drawn at random once."""
    if num_classes:
        # Evenly over all of the classes, where there are more than images.
        num_shown = min(num_classes, count)
        classes = [round(i * num_classes / num_shown) for i in range(num_shown)]
        by_class = rows_by_class(dataset, classes, -(-count // num_shown))
        rows = [row for turn in zip_longest(*by_class) for row in turn if row is not None][:count]
        if len(rows) == min(count, len(dataset)):
            return rows
    return readable_rows(dataset, min(count, len(dataset)))


def readable_rows(dataset: ImageDataset, count: int) -> list[int]:
    """Return up to `count` readable images of a data set as row numbers, drawn at random once."""
    return _readable(dataset, sample_rows(len(dataset), count), count)


def _readable(dataset: ImageDataset, rows: list[int], count: int) -> list[int]:
    chosen: list[int] = []
    for row in rows:
        if len(chosen) == count:
            break
        try:
            dataset[row]
        except CorruptImage:
            continue  # counted where the data set is measured
        chosen.append(row)
    return chosen


def pixels_of(dataset: ImageDataset, rows: list[int]) -> Pixels:
    """Return readable images of a data set as uint8 (N, H, W, 3)."""
    return torch.stack([dataset[row].image for row in rows]).permute(0, 2, 3, 1).numpy()


@dataclass(frozen=True)
class NearestImages:
    """The nearest training image of each of some images.

    Args:
        distances: (N,), root mean square over pixels and channels, in levels of 255.
        images: (N, H, W, 3) uint8, the training images.
        num_compared: training images looked at.
    """

    distances: NDArray[np.float32]
    images: Pixels
    num_compared: int


def nearest_training_images(images: Pixels, train: ImageDataset) -> NearestImages | None:
    """Find the nearest of up to `MAX_COMPARED` training images, drawn at random; None if none is readable."""
    queries = _flat(torch.as_tensor(images))
    best = torch.full((len(queries),), torch.inf)
    nearest = torch.zeros(len(queries), queries.shape[1], dtype=torch.uint8)
    count = 0
    rows = sample_rows(len(train), min(len(train), MAX_COMPARED))
    for start in range(0, len(rows), CHUNK):
        found = []
        for row in rows[start : start + CHUNK]:
            try:
                found.append(train[row].image.permute(1, 2, 0))
            except CorruptImage:
                continue  # counted where the data set is measured
        if not found:
            continue
        chunk = _flat(torch.stack(found))
        count += len(chunk)
        distances, index = torch.cdist(queries, chunk, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
        is_nearer = distances < best
        best = torch.where(is_nearer, distances, best)
        nearest[is_nearer] = chunk[index[is_nearer]].to(torch.uint8)
    if not count:
        return None
    scale = queries.shape[1] ** 0.5
    return NearestImages((best / scale).numpy(), nearest.reshape(images.shape).numpy(), count)


def _flat(images: Tensor) -> Tensor:
    return images.float().flatten(1)
