import numpy as np
import pytest
import torch
from torch.nn import functional as F

from simflow_plugin.contracts import DataContext
from simflow_plugin.data.digits import Digits
from simflow_plugin.errors import DataError


def digits(split: str, size: int = 32, seed: int = 0, **options) -> Digits:
    return Digits(Digits.Options(**options), DataContext(size, split, seed))


def area_average(dataset: Digits) -> np.ndarray:
    images, _ = dataset.read_batch(range(len(dataset)))
    return F.adaptive_avg_pool2d(images[:, :1].double(), 8)[:, 0].numpy() * 16 / 255


@pytest.mark.parametrize("size", [8, 16, 32, 64])
def test_area_average_recovers_the_original(size):
    dataset = digits("test", size)
    error = np.abs(area_average(dataset) - dataset.raw_images)
    assert error.mean() < 0.15  # of [0, 16]; rounding to 8 bits alone is 0.016
    assert error.max() < 1.5


def test_a_judge_of_originals_agrees_on_resized_digits():
    from sklearn.svm import SVC

    train, test = digits("train"), digits("test")
    judge = SVC(gamma=0.001).fit(train.raw_images.reshape(-1, 64), train.labels)
    held_out = judge.score(test.raw_images.reshape(-1, 64), test.labels)
    assert held_out > 0.97
    assert judge.score(area_average(test).reshape(-1, 64), test.labels) > held_out - 0.005


def test_splits_are_disjoint_and_complete():
    train, test = digits("train"), digits("test")
    rows = {row.tobytes() for row in train.raw_images} | {row.tobytes() for row in test.raw_images}
    assert len(train) + len(test) == 1797
    assert len(rows) == 1797


def test_split_is_stratified():
    share = torch.bincount(digits("test").labels) / torch.bincount(
        torch.cat([digits("train").labels, digits("test").labels])
    )
    assert torch.all((share - 0.2).abs() < 0.01)


def test_split_depends_on_split_seed_and_not_on_the_seed_of_the_run():
    first = digits("test", seed=0).raw_images
    assert np.array_equal(first, digits("test", seed=5).raw_images)
    assert not np.array_equal(first, digits("test", split_seed=1).raw_images)


def test_example_is_uint8_with_three_channels():
    image, label = digits("train")[0]
    assert image.shape == (3, 32, 32)
    assert image.dtype == torch.uint8
    assert 0 <= label < 10


@pytest.mark.parametrize(
    ("split", "size", "message"), [("train", 4, "image_size 4"), ("validation", 32, "train, test")]
)
def test_too_small_images_and_unknown_splits_are_refused(split, size, message):
    with pytest.raises(DataError, match=message):
        digits(split, size)
