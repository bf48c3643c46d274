"""Image grids as PNG: samples in class rows, reconstructions beside their originals, strips of an
interpolation.

Small images are enlarged by whole factors without smoothing, so that a pixel of the model stays a square.
The background is transparent and labels are mid-grey: readable on white and on black.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from simflow_plugin.errors import ShapeError
from simflow_plugin.files import replacing

GAP, GROUP_GAP = 2, 14
MIN_TILE = 48
"""Tiles below this many pixels are enlarged."""
LABEL_COLOUR = (128, 128, 128, 255)
FONT_SIZE = 13
WIDTH_PER_FONT_SIZE = 44
"""Pixels of a grid's width for each pixel of its labels' height, at least."""
MAX_LABEL_LENGTH = 24


def image_grid(
    images: NDArray[np.uint8],
    num_columns: int,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    groups: Mapping[str, int] | None = None,
) -> Image.Image:
    """Lay images out row by row.

    Args:
        images: (N, H, W, 3) uint8, [0, 255]; a tensor is accepted too. The last row may be short.
        groups: titles of neighbouring columns and how many each spans, in place of labels; a gap lies between them.
    Returns:
        An RGBA image.
    Raises:
        ShapeError: for another shape or type, no image, or a wrong number of labels.
    """
    images = _checked(images, num_columns, row_labels, column_labels)
    num_rows = -(-len(images) // num_columns)
    factor = max(1, -(-MIN_TILE // max(images.shape[1:3])))
    height, width = images.shape[1] * factor, images.shape[2] * factor
    # Large grids are shown smaller than they are: their labels grow with them.
    font_size = max(FONT_SIZE, num_columns * (width + GAP) // WIDTH_PER_FONT_SIZE)
    font = _font(font_size)
    left = max((int(font.getlength(label)) + 10 for label in row_labels or ()), default=0)
    top = font_size + 8 if column_labels or groups else 0
    shifts = [GROUP_GAP * number for number, span in enumerate((groups or {}).values()) for _ in range(span)]
    shifts = shifts or [0] * num_columns
    lefts = [left + column * (width + GAP) + shift for column, shift in enumerate(shifts)]
    tops = [top + row * (height + GAP) for row in range(num_rows)]
    canvas = Image.new("RGBA", (lefts[-1] + width, tops[-1] + height), (0, 0, 0, 0))
    draw = ImageDraw.Draw(canvas)
    for index, pixels in enumerate(images):
        row, column = divmod(index, num_columns)
        tile = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
        canvas.paste(tile, (lefts[column], tops[row]))
    for y, label in zip(tops, row_labels or (), strict=False):
        draw.text((left - 8, y + height // 2), label, LABEL_COLOUR, font, anchor="rm")
    for x, label in zip(lefts, column_labels or (), strict=False):
        draw.text((x + width // 2, top // 2), label, LABEL_COLOUR, font, anchor="mm")
    first = 0
    for title, span in (groups or {}).items():
        draw.text((lefts[first], top // 2), title, LABEL_COLOUR, font, anchor="lm")
        first += span
    return canvas


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Return matplotlib's DejaVu Sans: class names need more letters than the default font of Pillow has."""
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _checked(
    images: NDArray[np.uint8],
    num_columns: int,
    row_labels: Sequence[str] | None,
    column_labels: Sequence[str] | None,
) -> NDArray[np.uint8]:
    images = np.asarray(images)
    is_batch = images.ndim == 4 and images.shape[3] == 3 and images.dtype == np.uint8
    if not is_batch or len(images) == 0 or num_columns < 1:
        raise ShapeError(
            f"image grid: expected uint8 (N, H, W, 3), N and num_columns > 0; got {images.dtype} "
            f"{images.shape}, {num_columns} columns"
        )
    num_rows = -(-len(images) // num_columns)
    for labels, count, what in ((row_labels, num_rows, "row"), (column_labels, num_columns, "column")):
        if labels is not None and len(labels) != count:
            raise ShapeError(f"image grid: {len(labels)} {what} labels for {count} {what}s")
    return images


def save_image_grid(
    images: NDArray[np.uint8], path: Path, num_columns: int, row_labels: Sequence[str] | None = None
) -> None:
    """Write `image_grid` to a PNG file, in place of an older one."""
    with replacing(path) as part:
        part.write_bytes(png_bytes(image_grid(images, num_columns, row_labels)))


def shortened_name(name: str) -> str:
    """Return a class's name as a label of a row or column: the first `MAX_LABEL_LENGTH` characters."""
    return name if len(name) <= MAX_LABEL_LENGTH else f"{name[: MAX_LABEL_LENGTH - 3]}..."


def reconstruction_grid(
    originals: NDArray[np.uint8], reconstructions: NDArray[np.uint8], num_columns: int = 10
) -> Image.Image:
    """Lay out pairs of rows: originals above, their reconstructions below.

    Args:
        originals: (N, H, W, 3) uint8; only full rows are shown, or one short row.
        reconstructions: likewise, in the same order.
    """
    originals, reconstructions = np.asarray(originals), np.asarray(reconstructions)
    if originals.shape != reconstructions.shape:
        raise ShapeError(
            f"reconstruction grid: originals {originals.shape}, reconstructions {reconstructions.shape}"
        )
    num_columns = min(num_columns, len(originals))
    starts = range(0, len(originals) - num_columns + 1, num_columns)
    rows = [part[at : at + num_columns] for at in starts for part in (originals, reconstructions)]
    return image_grid(np.concatenate(rows), num_columns, ["original", "reconstruction"] * len(starts))


def png_bytes(image: Image.Image) -> bytes:
    """Return the image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
