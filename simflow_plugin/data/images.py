"""Pixels: decode a file, crop it as ADM does, resize a batch. Everything here is uint8 in [0, 255]."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from simflow_plugin.errors import DataError

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


class CorruptImage(DataError):
    """One image cannot be read. The loader counts it, names it in the log and takes the next one."""


def decode_image(content: bytes | Path, name: str) -> Image.Image:
    """Decode one image file to RGB.

    Args:
        content: the file's bytes, or where it is.
        name: for the message.
    Returns:
        an RGB image; an alpha channel is dropped, 16-bit grey is scaled to 8 bits, of an animation the first
        frame.
    Raises:
        CorruptImage: if it is unreadable, truncated or missing.
    """
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            image.load()
            if image.mode.startswith("I"):  # Pillow would clip 16-bit grey at 255 instead of scaling it
                return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise CorruptImage(f"{name}: not a readable image: {type(error).__name__}: {error}") from error


def center_crop(image: Image.Image, size: int) -> Tensor:
    """Scale the shorter side to `size` and cut the central square, as ADM does.

    Halving by box filters while the shorter side is at least twice too long, then one bicubic step: a single
    bicubic step from a large photograph would alias. FID references are made so; another crop moves the FID.

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
    if ratio != 1:
        scaled = (max(size, round(image.width * ratio)), max(size, round(image.height * ratio)))
        image = image.resize(scaled, Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return hwc_to_chw(np.asarray(image.crop((left, top, left + size, top + size))))


def hwc_to_chw(pixels: np.ndarray) -> Tensor:
    """Turn pixels (H, W, 3) into an image (3, H, W), both uint8."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def resize_batch(images: Tensor, size: int) -> Tensor:
    """Resize uint8 images (N, C, H, W) to (N, C, size, size), bicubic, antialiased when it shrinks."""
    if images.shape[-2:] == (size, size):
        return images
    resized = F.interpolate(images.float(), (size, size), mode="bicubic", antialias=True, align_corners=False)
    return resized.round_().clamp_(0, 255).to(torch.uint8)
