"""Thumbnails: the picture's colours in a terminal that has them, nothing anywhere else."""

import io

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from simflow_plugin.thumbnail import show_thumbnail


@pytest.fixture
def picture(tmp_path):
    pixels = np.zeros((4, 2, 4), np.uint8)
    pixels[:2] = (255, 0, 0, 255)
    pixels[2] = (0, 0, 255, 255)  # below it, transparent
    Image.fromarray(pixels).save(tmp_path / "grid.png")
    return tmp_path / "grid.png"


def shown(picture, is_terminal=True, **options):
    environment = {"TERM": "xterm-256color"}
    output = io.TextIOWrapper(io.BytesIO(), encoding=options.pop("encoding", "utf-8"))
    console = Console(file=output, force_terminal=is_terminal, width=20, _environ=environment, **options)
    was_shown = show_thumbnail(picture, console)
    output.flush()
    return was_shown, output.buffer.getvalue().decode()


def test_two_pixels_are_one_character(picture, monkeypatch):
    monkeypatch.setenv("COLORTERM", "truecolor")
    was_shown, text = shown(picture, color_system="truecolor")
    assert was_shown
    red_on_red, blue_on_nothing = text.splitlines()
    assert "38;2;255;0;0;48;2;255;0;0m" in red_on_red
    assert "38;2;0;0;255m" in blue_on_nothing


@pytest.mark.parametrize(
    ("options", "colours"),
    [
        ({"is_terminal": False}, "truecolor"),
        ({"no_color": True}, "truecolor"),
        ({"encoding": "latin-1"}, "truecolor"),
        ({}, ""),
    ],
    ids=["pipe", "no colour", "no half blocks", "colours not stated"],
)
def test_nothing_is_shown_where_it_cannot_be(picture, monkeypatch, options, colours):
    monkeypatch.setenv("COLORTERM", colours)
    assert shown(picture, **options) == (False, "")
