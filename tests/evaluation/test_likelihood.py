"""Likelihood metrics against closed forms: total mass one, linear Gaussian models, exact ranks."""

import csv
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from simflow_plugin.errors import EvaluationError
from simflow_plugin.evaluation.likelihood import (
    ReconstructionLikelihood,
    Scorer,
    auroc,
    bits_per_dim,
    draw_latents,
    write_scores,
)
from simflow_plugin.posteriors.gaussian import FixedVariancePosterior
from simflow_plugin.randomness import IndexedRandom
from tests.training.toys import LinearAutoencoder, LinearModel, StandardNormal

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
@pytest.mark.parametrize("centre", [-1.3, -0.7, 0.0, 0.99])
@pytest.mark.parametrize("scale", [0.004, 0.1, 2.0])
def test_levels_share_a_mass_of_one(kind, centre, scale):
    images = LEVELS.view(256, 1, 1, 1)
    log_mass = ReconstructionLikelihood(kind, scale).log_prob(images, torch.full_like(images, centre))
    assert log_mass.exp().sum() == pytest.approx(1.0, abs=1e-9)


def test_far_tails_stay_finite():
    images = torch.full((1, 1, 1, 1), -1.0)
    found = ReconstructionLikelihood("gaussian", 0.01).log_prob(images, images + 1.9)
    assert torch.isfinite(found).all()
    assert found < -100


def test_narrow_levels_approach_the_density():
    images = LEVELS[100].view(1, 1, 1, 1)
    found = ReconstructionLikelihood("gaussian", 0.5).log_prob(images, images + 0.2)
    density = -0.5 * (0.2 / 0.5) ** 2 - math.log(0.5 * math.sqrt(2 * math.pi))
    assert float(found) == pytest.approx(density + math.log(2 / 255), abs=1e-4)


def test_fitted_scale_is_the_most_likely():
    generator = torch.Generator().manual_seed(0)
    images = LEVELS[torch.randint(60, 190, (4, 3, 16, 16), generator=generator)]
    decoded = images + 0.1 * torch.randn(images.shape, generator=generator, dtype=torch.float64)
    fitted = ReconstructionLikelihood.fit("gaussian", images, decoded)
    assert fitted.scale == pytest.approx(0.1, rel=0.05)
    for factor in (0.9, 1.1):
        other = ReconstructionLikelihood("gaussian", fitted.scale * factor)
        assert other.log_prob(images, decoded).sum() < fitted.log_prob(images, decoded).sum()


@pytest.mark.parametrize("noise_std", [0.0, 0.2], ids=["clean latents", "noised latents"])
def test_bound_is_below_the_exact_likelihood_and_tight_for_the_true_posterior(noise_std):
    # x = z + 0.3 noise with z ~ N(0, 1): p(x) = N(0, 1.09); the posterior is N(x / 1.09, 0.09 / 1.09). Of a model
    # that adds noise to what the encoder says, z is the noised latent, and the encoder's own share is smaller.
    std, count = 0.3, 400
    precision = 1 + 1 / std**2
    autoencoder = LinearAutoencoder.identity(std=math.sqrt(1 / precision - noise_std**2))
    model = StandardNormal()
    model.noise_std = noise_std
    with torch.no_grad():
        autoencoder.encoder.weight *= 1 / (std**2 * precision)
    images = LEVELS[
        torch.randint(64, 192, (count, 3, 2, 2), generator=torch.Generator().manual_seed(0))
    ].float()
    scorer = Scorer(autoencoder, model, ReconstructionLikelihood("gaussian", std), num_samples=8)
    found = scorer(images, None, IndexedRandom(0, tuple(range(count)))).image_bits_per_dim
    exact = 0.5 * (images.double() ** 2 / 1.09 + math.log(2 * math.pi * 1.09)) - math.log(2 / 255)
    exact = exact.flatten(1).mean(1) / math.log(2)
    assert float((found - exact).mean()) == pytest.approx(0, abs=0.01)
    loose = Scorer(LinearAutoencoder.identity(0.5), model, scorer.likelihood)
    worse = loose(images, None, IndexedRandom(0, tuple(range(count)))).image_bits_per_dim
    assert float((worse - exact).mean()) > 0.1


def test_image_is_decoded_from_latents_without_the_models_noise():
    images = LEVELS[torch.randint(0, 256, (3, 3, 4, 4))].float()
    likelihood = ReconstructionLikelihood("gaussian", 0.3)
    plain, halving, autoencoder = StandardNormal(), StandardNormal(), LinearAutoencoder.identity()
    halving.remove_noise = lambda noisy_latents, labels: noisy_latents / 2
    expected = Scorer(autoencoder, plain, likelihood)(images, None, IndexedRandom(0, (0, 1, 2)))
    with torch.no_grad():
        autoencoder.decoder.weight *= 2
    found = Scorer(autoencoder, halving, likelihood)(images, None, IndexedRandom(0, (0, 1, 2)))
    torch.testing.assert_close(found.image_bits_per_dim, expected.image_bits_per_dim, rtol=1e-5, atol=1e-5)


def test_latents_are_drawn_with_the_models_noise():
    posterior = FixedVariancePosterior(torch.zeros(64, 3, 4, 4), torch.tensor(4.0))
    noise = IndexedRandom(0, tuple(range(64))).normal("likelihood_0", (64, 3, 4, 4))
    assert float(draw_latents(posterior, 3.0, noise).var()) == pytest.approx(4**2 + 3**2, rel=0.05)


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
def test_parts_add_up_to_a_bound_that_does_not_depend_on_the_batch(kind):
    images = LEVELS[torch.randint(0, 256, (3, 3, 4, 4))].float()
    scorer = Scorer(LinearAutoencoder.identity(), StandardNormal(), ReconstructionLikelihood(kind, 0.3))
    found = scorer(images, None, IndexedRandom(0, (0, 1, 2)))
    whole = found.image_bits_per_dim
    torch.testing.assert_close(whole, found.reconstruction_bits_per_dim + found.latent_cost_bits_per_dim)
    alone = scorer(images[2:], None, IndexedRandom(0, (2,))).image_bits_per_dim
    torch.testing.assert_close(whole[2:], alone, rtol=1e-5, atol=1e-5)  # pixels are decoded in float32


def test_model_without_density_is_refused():
    images = torch.zeros(1, 3, 4, 4)
    scorer = Scorer(LinearAutoencoder.identity(), LinearModel(), ReconstructionLikelihood("gaussian", 0.3))
    with pytest.raises(EvaluationError, match="exact density"):
        scorer(images, None, IndexedRandom(0, (0,)))


def test_one_bit_per_dim_is_ln_2_nats():
    assert float(bits_per_dim(torch.tensor([8 * math.log(2)]), 8)) == pytest.approx(1.0)


def test_auroc_matches_scikit_learn_with_ties():
    generator = np.random.default_rng(0)
    inside, outside = generator.integers(3, 9, 40).astype(float), generator.integers(0, 7, 30).astype(float)
    expected = roc_auc_score([1] * 40 + [0] * 30, np.concatenate([inside, outside]))
    assert auroc(inside, outside) == pytest.approx(expected, rel=1e-12)


def test_auroc_of_nothing_is_refused():
    with pytest.raises(EvaluationError, match="0 against 1"):
        auroc([], [1.0])


def test_scores_are_written_one_row_an_image(tmp_path):
    write_scores(tmp_path / "scores.csv", {"index": np.arange(2), "nats": torch.tensor([0.5, 1.5])})
    with (tmp_path / "scores.csv").open() as file:
        assert list(csv.reader(file)) == [["index", "nats"], ["0", "0.5"], ["1", "1.5"]]
