import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from simflow_plugin.data.images import CorruptImage, center_crop, decode_image, resize_batch
from tests.data.makers import CORRUPT, picture, png


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


def test_sixteen_bit_grey_is_scaled_not_clipped():
    image = Image.fromarray(np.full((8, 8), 256 * 100, dtype=np.uint16))
    import io

    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    assert np.unique(np.asarray(decode_image(buffer.getvalue(), "grey"))).tolist() == [100]


@pytest.mark.parametrize("content", [CORRUPT, b"", b"hello", png(3)[:60]])
def test_corrupt_bytes_are_named(content):
    with pytest.raises(CorruptImage, match="some/file.png"):
        decode_image(content, "some/file.png")


def test_missing_file_counts_as_corrupt(tmp_path):
    with pytest.raises(CorruptImage, match="gone"):
        decode_image(tmp_path / "gone.png", "gone")


def test_resize_keeps_range_and_constant_images():
    images = torch.full((2, 1, 8, 8), 255, dtype=torch.uint8)
    assert resize_batch(images, 20).unique().tolist() == [255]
