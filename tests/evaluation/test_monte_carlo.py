"""The control variate against closed forms: Gaussian latents under Gaussian densities, fixed and learned variance."""

import math

import pytest
import torch
from torch import nn

from simflow_plugin.contracts import Autoencoder
from simflow_plugin.evaluation.likelihood import (
    ReconstructionLikelihood,
    Scorer,
    draw_latents,
    noisy_entropy,
)
from simflow_plugin.evaluation.monte_carlo import (
    ENTROPY_REPLACED,
    NO_CONTROL,
    ControlVariate,
    coefficient,
    control_values,
    mean_and_error,
    pooled_error,
)
from simflow_plugin.posteriors.gaussian import FixedVariancePosterior, LearnedVariancePosterior
from simflow_plugin.randomness import IndexedRandom
from tests.training.toys import StandardNormal

COUNT, SHAPE = 96, (3, 2, 2)
LATENT_DIMS = math.prod(SHAPE)
PIXEL_STD = 0.3
"""x = z + PIXEL_STD * noise with z ~ N(0, 1)."""
TRUE_VARIANCE = 1 / (1 + 1 / PIXEL_STD**2)


class ShrinkingAutoencoder(Autoencoder):
    """Posterior mean x / (1 + PIXEL_STD^2), the true one; the decoder is the identity; float64.

    Args:
        log_variance: of the posterior, () for a fixed and SHAPE for a learned one.
    """

    factor, latent_channels, trainable = 1, 3, "none"

    def __init__(self, log_variance):
        super().__init__()
        self.log_variance = log_variance

    def encode(self, images):
        mean = images.double() / (1 + PIXEL_STD**2)
        if self.log_variance.dim() == 0:
            return FixedVariancePosterior(mean, torch.exp(0.5 * self.log_variance))
        return LearnedVariancePosterior(mean, self.log_variance.expand_as(mean))

    def decode(self, latents):
        return latents

    def last_layer(self):
        return nn.Parameter()


def constant(variance):
    return torch.tensor(math.log(variance), dtype=torch.float64)


def varying(variance):
    """One variance a dimension, whose geometric mean is `variance`."""
    return math.log(variance) + torch.linspace(-1, 1, LATENT_DIMS, dtype=torch.float64).reshape(SHAPE)


def exact_latent_log_prob(images, autoencoder):
    """E_q log N(z; 0, I)."""
    posterior = autoencoder.encode(images)
    second_moment = posterior.mean.square() + posterior.log_variance.exp()
    return -0.5 * (second_moment + math.log(2 * math.pi)).flatten(1).sum(1)


@pytest.fixture(scope="module")
def images():
    levels = torch.arange(256) / 127.5 - 1
    # Far from the ends, whose levels hold a tail.
    return levels[torch.randint(96, 160, (COUNT, *SHAPE), generator=torch.Generator().manual_seed(0))]


def score(images, autoencoder, control, num_samples=16, seed=0):
    likelihood = ReconstructionLikelihood("gaussian", PIXEL_STD)
    scorer = Scorer(autoencoder, StandardNormal(), likelihood, num_samples, control)
    return scorer(images, None, IndexedRandom(seed, tuple(range(len(images)))))


def fitted(images, autoencoder):
    scorer = Scorer(autoencoder, StandardNormal(), ReconstructionLikelihood("gaussian", PIXEL_STD))
    random = IndexedRandom(9, tuple(range(len(images))))
    draws = scorer.draw(images, autoencoder.encode(images), None, random, 2, "fit")
    return ControlVariate.fit(*draws)


@pytest.mark.parametrize("noise_std", [0.0, 0.7])
@pytest.mark.parametrize("log_variance", [constant(0.2), varying(0.2)], ids=["fixed", "learned"])
def test_control_is_the_sampled_log_q_plus_the_entropy(images, log_variance, noise_std):
    posterior = ShrinkingAutoencoder(log_variance).encode(images)
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    latents = draw_latents(posterior, noise_std, noise)
    widened = LearnedVariancePosterior(
        posterior.mean, (posterior.log_variance.exp() + noise_std**2).log().expand_as(posterior.mean)
    )
    expected = widened.log_prob(latents) + noisy_entropy(posterior, noise_std)
    torch.testing.assert_close(control_values(noise), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("log_variance", [constant(0.2), varying(0.2)], ids=["fixed", "learned"])
@pytest.mark.parametrize("control", [NO_CONTROL, ENTROPY_REPLACED, ControlVariate(0.3, 0.8)])
def test_mean_is_the_closed_form_whatever_the_coefficient(images, log_variance, control):
    autoencoder = ShrinkingAutoencoder(log_variance)
    found = score(images, autoencoder, control)
    error = pooled_error(found.latent_bits_error) * LATENT_DIMS * math.log(2)
    exact = exact_latent_log_prob(images, autoencoder)
    assert float((found.latent_log_prob - exact).mean()) == pytest.approx(0, abs=4 * error)


def test_bound_of_the_true_posterior_has_no_noise_left(images):
    autoencoder = ShrinkingAutoencoder(constant(TRUE_VARIANCE))
    control = fitted(images, autoencoder)
    assert control.log_prob + control.reconstruction == pytest.approx(1, abs=1e-3)
    # What is left is the width of a level, over which the density is not constant.
    noise = pooled_error(score(images, autoencoder, NO_CONTROL).image_bits_error)
    assert pooled_error(score(images, autoencoder, control).image_bits_error) < noise / 1000


@pytest.mark.parametrize("variance", [TRUE_VARIANCE, 1e-6, 0.3], ids=["true", "narrow", "wide"])
@pytest.mark.parametrize("kind", [constant, varying], ids=["fixed", "learned"])
def test_fitted_control_leaves_no_more_noise_than_either_choice_by_hand(images, kind, variance):
    """A learned std may be tiny; the sampled log q, which does not depend on it, would then only add its own noise."""
    autoencoder = ShrinkingAutoencoder(kind(variance))
    control = fitted(images, autoencoder)
    for field in ("latent_bits_error", "image_bits_error"):
        left = pooled_error(getattr(score(images, autoencoder, control), field))
        for other in (NO_CONTROL, ENTROPY_REPLACED):
            assert left < 1.02 * pooled_error(getattr(score(images, autoencoder, other), field))


@pytest.mark.parametrize("kind", [constant, varying], ids=["fixed", "learned"])
def test_spread_over_repeated_draws_falls_and_is_what_was_stated(images, kind):
    autoencoder = ShrinkingAutoencoder(kind(0.2))
    control = fitted(images, autoencoder)
    spread, stated = {}, {}
    for name, used in (("without", NO_CONTROL), ("with", control)):
        runs = [score(images, autoencoder, used, num_samples=2, seed=seed) for seed in range(1, 33)]
        means = torch.stack([run.image_bits_per_dim.mean() for run in runs])
        spread[name], stated[name] = float(means.std()), pooled_error(runs[0].image_bits_error)
    assert spread["with"] < 0.6 * spread["without"]
    for name in spread:
        assert stated[name] == pytest.approx(spread[name], rel=0.4)  # of 31 degrees of freedom


def test_coefficient_ignores_what_differs_between_images():
    generator = torch.Generator().manual_seed(0)
    control = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    values = 3 * control + 1000 * torch.arange(50, dtype=torch.float64)
    assert coefficient(values, control) == pytest.approx(3)


def test_coefficient_of_one_draw_is_zero():
    assert coefficient(torch.ones(1, 4), torch.ones(1, 4)) == 0


def test_error_is_that_of_a_mean_over_draws():
    mean, error = mean_and_error(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
    assert mean.tolist() == [2.0, 0.0]
    assert error.tolist() == pytest.approx([1.0, 0.0])
    assert mean_and_error(torch.ones(1, 2))[1].isnan().all()
