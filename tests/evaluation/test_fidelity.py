"""Generation metrics: right on known Gaussians, honest about few samples, cached by what they depend on."""

import math

import numpy as np
import pytest
import torch
from scipy import linalg
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from simflow_plugin.errors import EvaluationError
from simflow_plugin.evaluation.extractors import Extractor, ImageFeatures
from simflow_plugin.evaluation.fidelity import (
    Moments,
    extract,
    few_samples_warning,
    fidelity,
    frechet,
    frechet_distance,
)


class MeanColour(FeatureExtractorBase):
    """Three features: the mean of each channel."""

    def __init__(self, name="toy", features_list=("pooled",)):
        super().__init__(name, features_list)
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images):
        return (images.float().mean(dim=(2, 3)),)

    @staticmethod
    def get_provided_features_list():
        return ("pooled",)


def toy(name="toy", digest="0"):
    return Extractor(name, digest, MeanColour())


def normal(count, dims=4, shift=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dims, generator=generator) + shift


def random_covariance(generator, dims=6):
    factor = generator.normal(size=(dims, dims))
    return factor @ factor.T + 0.1 * np.eye(dims)


def test_frechet_of_axis_aligned_gaussians_is_closed_form():
    mean_1, mean_2 = np.array([0.0, 1.0]), np.array([2.0, -1.0])
    found = frechet_distance(Moments(mean_1, np.diag([1.0, 4.0])), Moments(mean_2, np.diag([9.0, 0.25])))
    assert found == pytest.approx(4 + 4 + (1 - 3) ** 2 + (2 - 0.5) ** 2, rel=1e-10)


def test_frechet_matches_matrix_square_root():
    generator = np.random.default_rng(0)
    first, second = random_covariance(generator), random_covariance(generator)
    mean = generator.normal(size=6)
    root = np.real(linalg.sqrtm(first @ second))
    expected = mean @ mean + np.trace(first + second - 2 * root)
    assert frechet_distance(Moments(mean, first), Moments(np.zeros(6), second)) == pytest.approx(
        expected, rel=1e-8
    )


def test_frechet_of_samples_tends_to_that_of_their_gaussians():
    found = frechet(normal(20_000), normal(20_000, shift=1.0, seed=1))
    assert found == pytest.approx(4.0, abs=0.1)


def test_frechet_of_large_means_keeps_its_digits():
    features = normal(2000).double()
    shifted = frechet(features + 1000, features + 1001)
    assert shifted == pytest.approx(4.0, abs=1e-6)


def test_other_features_are_never_called_fid():
    found = fidelity(ImageFeatures(normal(50)), ImageFeatures(normal(50, seed=1)), toy("timm:vit_tiny"))
    assert set(found) == {"fd_vit_tiny", "kd_vit_tiny", "precision_vit_tiny", "recall_vit_tiny"}


def test_equal_distributions_are_closer_than_different_ones():
    real, same, other = (ImageFeatures(normal(200, shift=s, seed=i)) for i, s in enumerate((0.0, 0.0, 2.0)))
    near, far = fidelity(same, real, toy()), fidelity(other, real, toy())
    assert near["fd_toy"].value < 0.3 < far["fd_toy"].value
    assert near["kd_toy"].value < far["kd_toy"].value
    assert near["precision_toy"].value > 0.8 > 0.4 > far["precision_toy"].value


def test_interval_of_kid_covers_the_value_of_equal_distributions():
    """The truth is 0. Intervals from subsets that overlap are far too narrow."""
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(10):
        both = [ImageFeatures(torch.randn(400, 4, generator=generator), None, None) for _ in range(2)]
        number = fidelity(*both, toy())["kd_toy"]
        covered += number.low <= 0 <= number.high
    assert covered >= 9
    few = [ImageFeatures(torch.randn(50, 4, generator=generator), None, None) for _ in range(2)]
    assert fidelity(*few, toy())["kd_toy"].low is None


def test_ten_samples_get_a_warning_in_the_number_itself():
    found = fidelity(ImageFeatures(normal(10, 32)), ImageFeatures(normal(50, 32, seed=1)), toy())
    assert found["fd_toy"].warning.count("do not quote") == 1
    assert "10 samples" in found["kd_toy"].warning


def test_enough_samples_get_no_warning():
    assert few_samples_warning("fid", 50_000, 50_000, 2048) == ""
    assert "2,100 real images" in few_samples_warning("fid", 50_000, 2_100, 2048)


@pytest.mark.parametrize(
    ("features", "message"), [(normal(1), "1 samples against 50"), (normal(9) * math.nan, "not finite")]
)
def test_one_sample_and_features_that_are_not_finite_are_refused(features, message):
    with pytest.raises(EvaluationError, match=message):
        fidelity(ImageFeatures(features), ImageFeatures(normal(50)), toy())


def test_features_do_not_depend_on_the_batches():
    images = torch.randint(0, 256, (7, 3, 8, 8), dtype=torch.uint8)
    whole, parts = extract(toy(), [images]), extract(toy(), images.split(3))
    torch.testing.assert_close(whole.pooled, parts.pooled, rtol=1e-4, atol=1e-5)
