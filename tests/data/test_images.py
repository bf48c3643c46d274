import resource

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from simflow_plugin.data.pixels import center_crop, resize_batch
from tests.data.makers import picture


@settings(max_examples=25, deadline=None, derandomize=True)
@given(width=st.integers(1, 90), height=st.integers(1, 90), size=st.sampled_from([8, 16, 31]))
def test_crop_has_the_size_asked_for(width, height, size):
    assert center_crop(picture(9, (width, height)), size).shape == (3, size, size)


def test_crop_of_a_square_of_that_size_changes_nothing():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert np.array_equal(center_crop(Image.fromarray(pixels), 16).numpy(), pixels.transpose(2, 0, 1))


def test_crop_takes_the_middle():
    pixels = np.zeros((16, 48, 3), dtype=np.uint8)
    pixels[:, 16:32] = 200
    assert center_crop(Image.fromarray(pixels), 16).unique().tolist() == [200]


def test_halving_is_a_box_average():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    mean = torch.from_numpy(pixels.transpose(2, 0, 1)).double().unfold(1, 2, 2).unfold(2, 2, 2).mean((-1, -2))
    # Pillow rounds after each axis, so up to one grey level.
    assert (center_crop(Image.fromarray(pixels), 16).double() - mean).abs().max() <= 1


def adm_crop(image: Image.Image, size: int) -> np.ndarray:
    """The crop as Dhariwal and Nichol write it, whatever it costs."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    ratio = size / min(image.size)
    scaled = (round(image.width * ratio), round(image.height * ratio))
    pixels = np.asarray(image.resize(scaled, Image.Resampling.BICUBIC))
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size].transpose(2, 0, 1)


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("shape", [(500, 375), (375, 500), (33, 64), (100, 900), (31, 17), (16, 16)])
def test_ordinary_crop_is_that_of_adm(shape):
    image = noise(*shape)
    assert np.array_equal(center_crop(image, 32).numpy(), adm_crop(image, 32))


@pytest.mark.parametrize("shape", [(2000, 20), (20, 2001), (3001, 3), (1000, 50), (3000, 40), (999, 1)])
def test_oblong_crop_is_that_of_adm_up_to_rounding(shape):
    image = noise(*shape)
    difference = center_crop(image, 32).numpy().astype(int) - adm_crop(image, 32)
    assert np.abs(difference).max() <= 1


def test_crop_of_an_oblong_picture_costs_what_its_output_does():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert center_crop(picture(7, (65_000, 1)), 256).unique().tolist() == [7]
    # KiB; scaled whole it takes 12 GB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_resize_keeps_range_and_constant_images():
    images = torch.full((2, 1, 8, 8), 255, dtype=torch.uint8)
    assert resize_batch(images, 20).unique().tolist() == [255]
