"""Images as users hold them: what is meant is read, what may be meant otherwise is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from simflow_plugin.errors import DataError, ShapeError
from simflow_plugin.inputs import as_images, as_labels

LEVELS = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
FLOATS = LEVELS.float() / 127.5 - 1


def pil_images():
    return [Image.fromarray(pixels) for pixels in LEVELS.permute(0, 2, 3, 1).numpy()]


@pytest.mark.parametrize(
    "given",
    [
        FLOATS,
        FLOATS.double(),
        FLOATS.numpy(),
        LEVELS,
        LEVELS.numpy(),
        LEVELS.permute(0, 2, 3, 1).numpy(),
        pil_images(),
    ],
    ids=["float32", "float64", "array", "uint8", "uint8_array", "uint8_channels_last", "pil"],
)
def test_every_way_to_write_images_gives_the_same_tensor(given):
    images = as_images(given, 4)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, FLOATS)


def test_pil_image_of_another_size_is_cropped_as_training_images_are():
    from simflow_plugin.data.pixels import center_crop

    picture = Image.effect_noise((11, 9), 80).convert("RGB")
    expected = center_crop(picture, 4).float()[None] / 127.5 - 1
    torch.testing.assert_close(as_images(picture, 4), expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (LEVELS.float(), r"floats from 0 to 95; expected \[-1, 1\].*uint8"),
        (FLOATS * torch.nan, "not finite"),
        (LEVELS.long(), "torch.int64; expected uint8"),
        (FLOATS[0], r"shape \(3, 4, 4\).*batch axis"),
        (torch.zeros(2, 3, 8, 8), r"shape \(2, 3, 8, 8\); expected \(B, 3, 4, 4\)"),
        (torch.zeros(2, 1, 4, 4), r"expected \(B, 3, 4, 4\)"),
        ([1, 2], "are a list"),
        ([], "are a list"),
        (Image.new("F", (4, 4), 300.0), "mode F"),
    ],
)
def test_images_that_may_mean_something_else_are_refused(given, message):
    with pytest.raises(ShapeError, match=message):
        as_images(given, 4)


def test_labels_are_numbers_or_names():
    names = ["cat", "dog", "7"]
    assert as_labels(["dog", "7", "cat"], names).tolist() == [1, 2, 0]
    assert as_labels("dog", names).tolist() == [1]
    assert as_labels(np.array([2, 0]), names).tolist() == [2, 0]
    assert as_labels(torch.tensor([1]), names).dtype == torch.int64


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["dgo"], "Did you mean `dog`"),
        ([2], "classes are 0 to 1"),
        ([-1], "no class -1"),
        ([0.5], "is a float"),
        ([True], "is a bool"),
    ],
)
def test_labels_of_no_class_are_refused(labels, message):
    with pytest.raises(DataError, match=message):
        as_labels(labels, ["cat", "dog"])


def test_labels_of_a_run_without_classes_are_refused():
    with pytest.raises(DataError, match="without classes"):
        as_labels([0], None)
