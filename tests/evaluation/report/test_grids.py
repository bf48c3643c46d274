"""Grids: every image in its place, pixel for pixel."""

import io
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from simflow_plugin.errors import ShapeError
from simflow_plugin.evaluation.report.grids import (
    GAP,
    image_grid,
    png_bytes,
    reconstruction_grid,
    save_image_grid,
)


def images(count=6, size=16):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_letters_of_class_names_are_drawn_and_told_apart():
    """A font without a letter draws the same box for each of them."""
    black = np.zeros((1, 64, 64, 3), np.uint8)
    drawn = [np.asarray(image_grid(black, 1, [name])) for name in ("ж", "ñ", "Ω", "–")]
    assert all(a.shape != b.shape or (a != b).any() for a, b in combinations(drawn, 2))


def test_images_are_in_row_order_and_enlarged_by_whole_pixels():
    tiles = images()
    grid = np.asarray(image_grid(tiles, 3))
    step = 48 + GAP
    for index, tile in enumerate(tiles):
        row, column = divmod(index, 3)
        found = grid[row * step : row * step + 48, column * step : column * step + 48, :3]
        np.testing.assert_array_equal(found, np.kron(tile, np.ones((3, 3, 1), dtype=np.uint8)))


def test_large_images_keep_their_size():
    assert image_grid(images(1, 64), 1).size == (64, 64)


def test_labels_make_room():
    plain, labelled = image_grid(images(), 3), image_grid(images(), 3, ["zero", "one"], ["a", "b", "c"])
    assert labelled.size[0] > plain.size[0]
    assert labelled.size[1] > plain.size[1]


@pytest.mark.parametrize(
    ("bad", "row_labels", "message"),
    [
        (np.zeros((0, 8, 8, 3), np.uint8), None, "uint8"),
        (np.zeros((2, 8, 8, 3)), None, "uint8"),
        (np.zeros((2, 3, 8, 8), np.uint8), None, "uint8"),
        (images(), ["zero"], "1 row labels for 2 rows"),
    ],
)
def test_other_arrays_and_numbers_of_labels_are_refused(bad, row_labels, message):
    with pytest.raises(ShapeError, match=message):
        image_grid(bad, 3, row_labels)


def test_originals_stand_above_their_reconstructions():
    originals = images(7)
    grid = np.asarray(reconstruction_grid(originals, 255 - originals, num_columns=3))[..., :3]
    above, below = grid[:48, -48:], grid[50:98, -48:]
    np.testing.assert_array_equal(above, 255 - below)
    assert grid.shape[0] == 4 * (48 + GAP) - GAP


def test_saved_grid_is_the_same_image(tmp_path):
    save_image_grid(images(), tmp_path / "grid.png", num_columns=3)
    expected = Image.open(io.BytesIO(png_bytes(image_grid(images(), 3))))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "grid.png")), np.asarray(expected))
