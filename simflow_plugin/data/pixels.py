"""Pixels: crop an image as ADM does, resize a batch. Everything here is uint8 in [0, 255]."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

MAX_SCALED_SQUARES = 16
"""A picture more oblong than this is cut before it is scaled: whole, it would make this many squares of output."""


def center_crop(image: Image.Image, size: int) -> Tensor:
    """Scale the shorter side to `size` and cut the central square, as ADM does.

    Halving by box filters while the shorter side is at least twice too long, then one bicubic step: a single
    bicubic step from a large photograph would alias. FID references are made so; another crop moves the FID.

    Of a picture longer than `MAX_SCALED_SQUARES` times its width only the square is scaled, by the same filter: what
    is needed is in proportion to the output, and the result is the same up to rounding (one grey level).

    Args:
        image: RGB, any shape.
        size: in pixels.
    Returns:
        (3, size, size), uint8.
    Reference:
        Dhariwal and Nichol, arXiv:2105.05233, appendix on training details.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    ratio = size / min(image.size)
    width, height = max(size, round(image.width * ratio)), max(size, round(image.height * ratio))
    left, top = (width - size) // 2, (height - size) // 2
    if max(width, height) > MAX_SCALED_SQUARES * size:
        # Pixels of the picture per pixel of the output.
        across, down = (image.width / width, image.height / height)
        square = (left * across, top * down, (left + size) * across, (top + size) * down)
        return hwc_to_chw(np.asarray(_scale_square(image, square, size)))
    if ratio != 1:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return hwc_to_chw(np.asarray(image.crop((left, top, left + size, top + size))))


def _scale_square(image: Image.Image, square: tuple[float, float, float, float], size: int) -> Image.Image:
    """Scale the part `square` (left, top, right, bottom) of `image`; the filter sees the pixels around it too."""
    margin = 4 + int(2 * max(1.0, (square[2] - square[0]) / size, (square[3] - square[1]) / size))
    corner = (max(0, int(square[0]) - margin), max(0, int(square[1]) - margin))
    opposite = (min(image.width, int(square[2]) + margin), min(image.height, int(square[3]) + margin))
    # Pillow keeps `box` in float32, which is exact enough only near the origin: cut whole pixels first.
    part = image.crop((*corner, *opposite))
    box = (square[0] - corner[0], square[1] - corner[1], square[2] - corner[0], square[3] - corner[1])
    box = (*box[:2], min(box[2], part.width), min(box[3], part.height))
    return part.resize((size, size), Image.Resampling.BICUBIC, box=box)


def hwc_to_chw(pixels: np.ndarray) -> Tensor:
    """Turn pixels (H, W, 3) into an image (3, H, W), both uint8."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def resize_batch(images: Tensor, size: int) -> Tensor:
    """Resize uint8 images (N, C, H, W) to (N, C, size, size), bicubic, antialiased when it shrinks."""
    if images.shape[-2:] == (size, size):
        return images
    resized = F.interpolate(images.float(), (size, size), mode="bicubic", antialias=True, align_corners=False)
    return resized.round_().clamp_(0, 255).to(torch.uint8)
