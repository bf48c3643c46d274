"""A picture in a terminal that can show it: two pixels a character, as coloured half blocks.

Nothing is shown in a pipe, or where the terminal does not declare 24-bit colour (COLORTERM).
"""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

HALF_BLOCK = "▀"
MAX_ROWS = 24
"""Lines of text that a picture takes at most."""


def can_show(console: Console) -> bool:
    """Return whether the terminal shows 24-bit colour and the encoding has half blocks."""
    knows_colour = os.environ.get("COLORTERM", "").lower() in ("truecolor", "24bit")
    try:
        HALF_BLOCK.encode(console.encoding)
    except (LookupError, UnicodeEncodeError):
        return False
    return console.is_terminal and knows_colour and not console.no_color and not console.is_dumb_terminal


def show_thumbnail(path: Path, console: Console | None = None) -> bool:
    """Print an image file as wide as the terminal allows, and return whether it was.

    Args:
        path: a PNG; what is transparent is left in the terminal's own colour.
        console: where to; None is standard output.
    """
    console = console or Console()
    if not can_show(console):
        return False
    with Image.open(path) as image:
        scale = min(1.0, console.width / image.width, 2 * MAX_ROWS / image.height)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        small = image.convert("RGBA").resize(size, Image.Resampling.BOX)
    for top in range(0, small.height, 2):
        line = Text(no_wrap=True, end="\n")
        for left in range(small.width):
            upper = _colour(small, left, top)
            lower = _colour(small, left, top + 1) if top + 1 < small.height else None
            if upper is None and lower is None:
                line.append(" ")
            elif upper is None:
                line.append("▄", Style(color=lower))
            else:
                line.append(HALF_BLOCK, Style(color=upper, bgcolor=lower))
        console.print(line, soft_wrap=True)
    return True


def _colour(image: Image.Image, left: int, top: int) -> Color | None:
    """Return a pixel's colour, None where it is more transparent than not."""
    red, green, blue, alpha = image.getpixel((left, top))  # type: ignore[misc]
    return Color.from_rgb(red, green, blue) if alpha >= 128 else None
