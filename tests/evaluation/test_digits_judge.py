"""The judge of digits: right on real digits, hard on collapsed and on wrong ones."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from simflow_plugin.errors import EvaluationError, ShapeError
from simflow_plugin.evaluation.judges.digits_svc import judge_digits, to_judge_space


@pytest.fixture(scope="module")
def real():
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8)
    return {
        "train_images": images[:1000],
        "train_labels": labels[:1000],
        "test_images": images[1000:],
        "test_labels": labels[1000:],
    }


def as_samples(images, size=16):
    """Enlarge raw digits by repeating pixels, whose area average is the raw digit again."""
    grey = np.kron(images * (255 / 16), np.ones((size // 8, size // 8))).round().astype(np.uint8)
    return np.repeat(grey[:, None], 3, axis=1)


def test_area_average_undoes_enlarging(real):
    raw = real["test_images"][:20]
    np.testing.assert_allclose(to_judge_space(as_samples(raw)), raw, atol=0.04)


def test_fractional_area_average_keeps_the_mean():
    samples = np.random.default_rng(0).integers(0, 256, (2, 3, 28, 11), dtype=np.uint8)
    grey = np.tensordot(samples, [0.299, 0.587, 0.114], axes=(1, 0)).mean(axis=(1, 2)) * 16 / 255
    np.testing.assert_allclose(to_judge_space(samples).mean(axis=(1, 2)), grey, rtol=1e-12)


def test_real_held_out_digits_agree_and_are_as_diverse(real):
    found = judge_digits(as_samples(real["test_images"]), real["test_labels"], **real)
    assert found.class_agreement > 0.94
    assert abs(found.class_agreement - found.class_agreement_real) < 0.01
    assert 0.9 < found.diversity_ratio < 1.1


def test_one_repeated_digit_per_class_has_no_diversity(real):
    rows = [np.flatnonzero(real["train_labels"] == label)[0] for label in range(10)] * 3
    found = judge_digits(as_samples(real["train_images"][rows]), np.arange(30) % 10, **real)
    assert found.class_agreement > 0.85
    assert found.diversity_ratio == 0.0


def test_wrong_labels_do_not_agree(real):
    found = judge_digits(as_samples(real["test_images"]), (real["test_labels"] + 1) % 10, **real)
    assert found.class_agreement < 0.05
    assert set(found.agreement_by_class) == set(range(10))


def test_float_samples_are_refused(real):
    with pytest.raises(ShapeError, match="uint8"):
        judge_digits(np.zeros((2, 3, 16, 16)), np.zeros(2, dtype=int), **real)


def test_no_samples_are_refused(real):
    with pytest.raises(EvaluationError, match="no sample"):
        judge_digits(np.zeros((0, 3, 16, 16), dtype=np.uint8), np.zeros(0, dtype=int), **real)
