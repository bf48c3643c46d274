"""One image file -> RGB pixels, uint8. All data sets of files decode here, so that one rule holds for all.

Orientation (EXIF) is applied, transparency is laid over a background, deep pixels are scaled by their type:

    16-bit grey          value >> 8 (as many bits as a TIFF says it has); PGM and PNG by their definition
    int32                in [0, 255] as it is, in [0, 65535] as 16-bit grey, else refused
    float32              in [0, 1] times 255, in [0, 255] as it is, else refused; a maximum in (1, 16] is of neither

Whatever a decoder raises becomes `CorruptImage`: the file is named, counted and skipped.
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from simflow_plugin.data.image_formats import readable_formats
from simflow_plugin.errors import DataError

VERSION = 2
"""Of the rules above: it changes when some file gets other pixels. What is cached of images depends on it."""
MAX_FILE_BYTES = 1 << 30
"""Of one encoded image. A larger file is no photograph; reading it would fill the memory of every worker."""
DRAFT_PIXELS = 50_000_000
"""A larger JPEG is decoded at 1/2, 1/4 or 1/8 of its size, by its own transform; a smaller one whole, then halved."""
WHITE = (255, 255, 255)
ORIENTATION_TAG = 0x0112
TURN_BY_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
UNCLEAR_FLOATS = 16.0
"""A float image whose maximum lies between 1 and this is either of [0, 1] with overshoot or a black one of [0, 255]."""
BITS_TAG, PHOTOMETRIC_TAG, WHITE_IS_ZERO = 258, 262, 0


PLAIN_FILE = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
"""Flags of `os.open`, as far as the system has them: opening a FIFO would wait for a writer."""


class CorruptImage(DataError):
    """One image cannot be read. The loader counts it, names it in the log and takes the next one."""


def decode_image(
    content: bytes, name: str, size: int | None = None, background: tuple[int, int, int] = WHITE
) -> Image.Image:
    """Decode one image file to RGB.

    Args:
        size: side in pixels that the image is scaled to afterwards; lets a huge JPEG be decoded smaller, never below
            twice that. None decodes all pixels.
        background: RGB, what shows through transparent pixels.
    Returns:
        an RGB image, upright; of an animation the first frame.
    Raises:
        CorruptImage: if it is unreadable, truncated, empty, of a format that is not read, or its pixels have no known
            range.
    """
    try:
        with Image.open(io.BytesIO(content), formats=readable_formats()) as image:
            if size is not None and image.width * image.height > DRAFT_PIXELS:
                image.draft(None, (2 * size, 2 * size))
            image.load()
            if min(image.size) < 1:
                raise ValueError(f"{image.width} x {image.height} pixels")
            return to_rgb(image, background)
    except UnidentifiedImageError as error:
        raise CorruptImage(
            f"{name}: not a readable image: {len(content)} bytes that start with {content[:8]!r}, none of "
            f"{', '.join(readable_formats())}"
        ) from error
    # Decoders raise some twenty kinds for damaged bytes (TypeError, OverflowError, struct.error, MemoryError, ...).
    except Exception as error:
        raise CorruptImage(f"{name}: not a readable image: {type(error).__name__}: {error}") from error


def to_rgb(image: Image.Image, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """Return an opened image as 8-bit RGB, upright, by the rules of this file's head.

    Args:
        image: of any mode.
        background: RGB, what shows through transparent pixels.
    Raises:
        ValueError: if its pixels have no known range.
    """
    if image.mode[0] in "IF":
        rgb = _deep_to_rgb(image, background)
    elif image.has_transparency_data:
        rgb = _over(_with_alpha(image), background)
    else:
        rgb = image if image.mode == "RGB" else image.convert("RGB")
    try:
        orientation = image.getexif().get(ORIENTATION_TAG)
    except Exception:  # an unreadable one is none, as in every viewer
        orientation = None
    turn = TURN_BY_ORIENTATION.get(orientation) if isinstance(orientation, int) else None
    return rgb if turn is None else rgb.transpose(turn)


def read_image_file(path: Path) -> bytes:
    """Return the content of an image file.

    Raises:
        CorruptImage: if it is missing, not a regular file (a FIFO would never end), or larger than `MAX_FILE_BYTES`.
    """
    try:
        # Non-blocking: opening a FIFO would wait for a writer. It has no effect on regular files.
        descriptor = os.open(path, os.O_RDONLY | PLAIN_FILE)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise CorruptImage(f"{path}: not a regular file")
            if status.st_size > MAX_FILE_BYTES:
                raise CorruptImage(
                    f"{path}: {status.st_size} bytes, more than the {MAX_FILE_BYTES} of an image"
                )
            return file.read()
    except (OSError, ValueError, MemoryError) as error:
        raise CorruptImage(f"{path}: cannot be read: {error}") from error


def used_bits(content: bytes) -> int | None:
    """Return how many bits the pixels of a 16-bit grey image use; None for any other, or one that states it."""
    try:
        with Image.open(io.BytesIO(content), formats=readable_formats()) as image:
            if not image.mode.startswith("I;16") or 8 < _declared_bits(image) < 16:
                return None
            return int(np.asarray(image).max()).bit_length()
    except Exception:
        return None


def _declared_bits(image: Image.Image) -> int:
    return int(getattr(image, "tag_v2", {}).get(BITS_TAG, (16,))[0])


def _with_alpha(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    colour = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(colour, tuple) and max(colour) > 255:
        # A PNG of 3 x 16 bits is decoded to 8: so must be the colour that is transparent in it.
        image.info["transparency"] = tuple(value >> 8 for value in colour)
    return image.convert("RGBA")


def _over(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image).convert("RGB")


def _deep_to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    pixels = np.asarray(image)
    grey = deep_to_uint8(pixels, image)
    result = Image.fromarray(grey)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        alpha = Image.fromarray(np.where(pixels == transparent, 0, 255).astype(np.uint8))
        return _over(Image.merge("LA", (result, alpha)).convert("RGBA"), background)
    return result.convert("RGB")


def deep_to_uint8(pixels: np.ndarray, image: Image.Image) -> np.ndarray:
    """Scale grey pixels (H, W) of more than 8 bits to uint8, by the type and range that `image` declares.

    Raises:
        ValueError: if no rule of this file's head covers their range.
    """
    tags = getattr(image, "tag_v2", {})
    if pixels.dtype.kind == "f":
        result = _float_to_uint8(pixels)
    elif image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):
        bits = _declared_bits(image)
        result = (pixels >> ((bits if 8 < bits < 16 else 16) - 8)).clip(0, 255).astype(np.uint8)
    else:
        lowest, highest = int(pixels.min()), int(pixels.max())
        if lowest < 0 or highest > 65535:
            raise ValueError(
                f"{8 * pixels.itemsize}-bit pixels from {lowest} to {highest}: not of [0, 255] or [0, 65535]. Save "
                "it with 8 or 16 bits"
            )
        result = (pixels >> (8 if highest > 255 else 0)).astype(np.uint8)
    return 255 - result if tags.get(PHOTOMETRIC_TAG) == WHITE_IS_ZERO else result


def _float_to_uint8(pixels: np.ndarray) -> np.ndarray:
    lowest, highest = float(pixels.min()), float(pixels.max())
    if not (lowest >= 0 and (highest <= 1 or UNCLEAR_FLOATS < highest <= 255)):  # also false for NaN
        raise ValueError(
            f"float pixels from {lowest:g} to {highest:g}: neither of [0, 1] nor of [0, 255]. Save it with 8 or 16 "
            "bits"
        )
    scaled = pixels.astype(np.float64) * (255 if highest <= 1 else 1)
    return np.rint(scaled).astype(np.uint8)
