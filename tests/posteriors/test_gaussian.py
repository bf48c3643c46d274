"""Posteriors agree with torch.distributions, whose formulas they write out."""

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from simflow_plugin.errors import ShapeError
from simflow_plugin.posteriors.gaussian import (
    FixedVariancePosterior,
    GaussianPosterior,
    LearnedVariancePosterior,
)

SHAPE = (3, 4, 2, 5)
POSTERIORS = ["fixed", "fixed_by_channel", "learned"]


def draw(seed: int, shape=SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(kind: str) -> GaussianPosterior:
    mean = draw(0)
    if kind == "learned":
        return LearnedVariancePosterior(mean, draw(1))
    std = torch.tensor([0.5] if kind == "fixed" else [0.1, 0.5, 1.0, 3.0], dtype=torch.float64)
    return FixedVariancePosterior(mean, std[:, None, None])


def reference(posterior: GaussianPosterior) -> Independent:
    return Independent(Normal(posterior.mean, posterior.std), 3)


@pytest.mark.parametrize("kind", POSTERIORS)
def test_log_prob_matches_torch_distributions(kind):
    posterior, latents = make(kind), draw(2)
    torch.testing.assert_close(posterior.log_prob(latents), reference(posterior).log_prob(latents))


@pytest.mark.parametrize("kind", POSTERIORS)
def test_entropy_matches_torch_distributions(kind):
    posterior = make(kind)
    torch.testing.assert_close(posterior.entropy(), reference(posterior).entropy())


@pytest.mark.parametrize("kind", POSTERIORS)
def test_kl_matches_torch_distributions(kind):
    posterior = make(kind)
    standard = Independent(Normal(torch.zeros(SHAPE).double(), torch.ones(SHAPE).double()), 3)
    torch.testing.assert_close(posterior.kl(), kl_divergence(reference(posterior), standard))


@pytest.mark.parametrize("kind", POSTERIORS)
def test_sample_is_mean_plus_std_times_noise(kind):
    posterior, noise = make(kind), draw(3)
    torch.testing.assert_close(posterior.sample(noise=noise), posterior.mean + posterior.std * noise)
    assert torch.equal(posterior.mode(), posterior.mean)


@pytest.mark.parametrize("kind", POSTERIORS)
def test_same_generator_gives_same_sample(kind):
    posterior = make(kind)
    first, second = (posterior.sample(torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)


def test_noise_of_another_shape_is_refused():
    with pytest.raises(ShapeError, match=r"\(3, 4, 2, 1\)"):
        make("fixed").sample(noise=draw(0, (3, 4, 2, 1)))


def test_latents_of_another_shape_are_refused():
    with pytest.raises(ShapeError, match="latents"):
        make("fixed").log_prob(draw(0, (1, 4, 2, 5)))


@pytest.mark.parametrize("kind", POSTERIORS)
def test_normalized_is_a_change_of_variables(kind):
    posterior, noise = make(kind), draw(4)
    shift, scale = draw(5, (4, 1, 1)), draw(6, (4, 1, 1)).exp()
    changed, latents = posterior.normalized(shift, scale), posterior.sample(noise=noise)
    logdet = scale.log().sum() * SHAPE[2] * SHAPE[3]
    torch.testing.assert_close(changed.sample(noise=noise), (latents - shift) * scale)
    torch.testing.assert_close(
        changed.log_prob((latents - shift) * scale), posterior.log_prob(latents) - logdet
    )


def test_fixed_entropy_has_no_gradient():
    mean = draw(0).requires_grad_()
    assert not FixedVariancePosterior(mean, torch.tensor(0.5)).entropy().requires_grad


def test_fixed_std_is_a_view_without_own_memory():
    posterior = make("fixed")
    assert posterior.std.untyped_storage().nbytes() == 8
