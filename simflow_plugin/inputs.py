"""Images and labels as users hold them, turned into tensors; pixels out of range are refused, not guessed at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from simflow_plugin.data.decoding import to_rgb
from simflow_plugin.data.loader import to_float
from simflow_plugin.data.pixels import center_crop
from simflow_plugin.errors import DataError, ShapeError
from simflow_plugin.options import did_you_mean
from simflow_plugin.randomness import IndexedRandom

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Images = Tensor | NDArray[Any] | Image.Image | Sequence[Image.Image]
    Labels = int | str | Sequence[int] | Sequence[str] | Tensor | NDArray[Any]

ROUNDING = 1e-3
"""By how much a float may lie outside of [-1, 1]."""


class LabelledBatch(NamedTuple):
    """Rows of a call: `images` (B, 3, H, W) and `labels` (B,) or None on one device, `random` draws by row."""

    images: Tensor
    labels: Tensor | None
    random: IndexedRandom


def labelled_batches(
    images: Tensor, labels: Tensor | None, batch_size: int, seed: int, device: torch.device
) -> Iterator[LabelledBatch]:
    """Cut images into batches; row i has the noise of (seed, i).

    Args:
        images: of `as_images`.
        labels: of `as_labels`, one for all or one an image; or None.
        batch_size: the last one may be smaller.
        seed: of the noise.
        device: of the batches.
    Raises:
        DataError: for another number of labels.
    """
    if labels is not None:
        if len(labels) not in (1, len(images)):
            raise DataError(f"{len(labels)} labels for {len(images)} images; give one, or one an image")
        labels = labels.expand(len(images))
    for rows in torch.arange(len(images)).split(batch_size):
        of_rows = None if labels is None else labels[rows].to(device)
        yield LabelledBatch(images[rows].to(device), of_rows, IndexedRandom(seed, tuple(rows.tolist())))


def as_images(images: Images, size: int) -> Tensor:
    """Return images as float32 (B, 3, size, size) in [-1, 1], on the device where they are.

    Args:
        images: floats (B, 3, size, size) in [-1, 1]; uint8 (B, 3, size, size) or (B, size, size, 3) in [0, 255]; a PIL
            image or a list of them, which are center-cropped and scaled as training images are.
        size: pixels of a side.
    Raises:
        ShapeError: for another shape, type or range, or a value that is not finite.
    """
    if isinstance(images, Image.Image):
        return as_images([images], size)
    if isinstance(images, Sequence) and images and all(isinstance(one, Image.Image) for one in images):
        return to_float(torch.stack([_cropped(one, size) for one in images]))
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.ascontiguousarray(images))
    if not isinstance(images, Tensor):
        raise ShapeError(
            f"images are a {type(images).__name__}; expected a tensor or array (B, 3, {size}, {size}), a PIL image or "
            "a list of PIL images"
        )
    if images.dtype == torch.uint8 and tuple(images.shape[1:]) == (size, size, 3):
        images = images.permute(0, 3, 1, 2)
    if images.dim() != 4 or tuple(images.shape[1:]) != (3, size, size):
        hint = "; add the batch axis: images[None]" if images.dim() == 3 else ""
        raise ShapeError(
            f"images have shape {tuple(images.shape)}; expected (B, 3, {size}, {size}), the pixels that the run was "
            f"trained on{hint}"
        )
    if images.dtype == torch.uint8:
        return to_float(images)
    if not images.is_floating_point():
        raise ShapeError(f"images are {images.dtype}; expected uint8 in [0, 255] or floats in [-1, 1]")
    return _checked_range(images.to(torch.float32))


def as_labels(labels: Labels, names: Sequence[str] | None) -> Tensor:
    """Return labels as int64 (B,), each in [0, K).

    Args:
        labels: a class or one an image, by number or name.
        names: of the K classes; None for a run without classes.
    Raises:
        DataError: if there is no such class; the message lists those there are.
    """
    if names is None:
        raise DataError(f"labels {labels!r}: the run was trained without classes. Leave the labels out.")
    values: list[Any]
    if isinstance(labels, (int, str, np.integer)):
        values = [labels]
    else:
        values = labels.tolist() if isinstance(labels, (Tensor, np.ndarray)) else list(labels)
    return torch.tensor([_class_number(value, names) for value in values], dtype=torch.int64)


def _class_number(value: Any, names: Sequence[str]) -> int:
    if isinstance(value, str):
        if value not in names:
            raise DataError(f"there is no class `{value}`.{did_you_mean(value, names)}")
        return names.index(value)
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise DataError(f"label {value!r} is a {type(value).__name__}; expected a class by number or name")
    if not 0 <= value < len(names):
        raise DataError(f"there is no class {value}; classes are 0 to {len(names) - 1}")
    return int(value)


def _cropped(image: Image.Image, size: int) -> Tensor:
    try:
        return center_crop(to_rgb(image), size)
    except ValueError as error:
        raise ShapeError(f"PIL image of mode {image.mode}: {error}") from error


def _checked_range(images: Tensor) -> Tensor:
    if images.numel() == 0:
        return images
    if not bool(images.isfinite().all()):
        raise ShapeError(
            "images hold values that are not finite (NaN or infinite); expected floats in [-1, 1]"
        )
    lowest, highest = float(images.min()), float(images.max())
    if lowest < -1 - ROUNDING or highest > 1 + ROUNDING:
        raise ShapeError(
            f"images are floats from {lowest:.4g} to {highest:.4g}; expected [-1, 1]. Pass pixels in [0, 255] as "
            "uint8, or images / 127.5 - 1; of [0, 1], images * 2 - 1"
        )
    return images
