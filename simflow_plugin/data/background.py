"""Colours that show through transparent pixels, by name or `#rrggbb`."""

from __future__ import annotations

from PIL import ImageColor


def check_background(value: str) -> str:
    """Return a colour name or `#rrggbb` if Pillow knows it.

    Raises:
        ValueError: otherwise.
    """
    if len(ImageColor.getrgb(value)) != 3:
        raise ValueError(f"`{value}`: a background cannot be transparent itself")
    return value


def background_colour(value: str) -> tuple[int, int, int]:
    """Return (red, green, blue) of a colour that `check_background` let pass."""
    red, green, blue = ImageColor.getrgb(value)[:3]
    return red, green, blue
