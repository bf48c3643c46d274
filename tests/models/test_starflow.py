"""STARFlow: noise in training, Tweedie's formula in sampling, both against closed forms."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from simflow_plugin.contracts import ModelContext
from simflow_plugin.models.simflow import SimFlow
from simflow_plugin.models.starflow import StarFlow
from simflow_plugin.randomness import BatchRandom, IndexedRandom

SHAPE = (2, 4, 4)
FLOW = {"width": 16, "head_dim": 8, "layers_per_block": [1, 1], "patch_size": 2}
RANDOM = BatchRandom(seed=0, step=0, offset=0, global_batch_size=4)


def build(factory: type[SimFlow] = StarFlow, perturb: bool = False, **options: Any) -> Any:
    model = factory(
        factory.Options.model_validate({"flow": FLOW, **options}), ModelContext(SHAPE, num_classes=3)
    )
    if perturb:  # a new flow is the identity
        for parameter in model.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model


def test_loss_is_simflows_on_noisy_latents() -> None:
    model, latents = build(perturb=True, noise_std=0.5), torch.randn(4, *SHAPE)
    plain = build(SimFlow)
    plain.load_state_dict(model.state_dict())
    noisy = latents + 0.5 * RANDOM.normal("latent_noise", latents.shape)
    labels = torch.tensor([0, 1, 2, 0])
    expected = plain.training_losses(noisy, labels, None, RANDOM)["nll"]
    torch.testing.assert_close(model.training_losses(latents, labels, None, RANDOM)["nll"], expected)


def test_score_denoising_is_the_posterior_mean_of_gaussian_data() -> None:
    # A new flow is the identity, so its density is N(0, 1): data of variance 1 - sigma^2 plus noise. Then the
    # posterior mean is E[z given z~] = (1 - sigma^2) z~.
    noisy = torch.randn(3, *SHAPE)
    denoised = build(noise_std=0.6).denoise(noisy, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(denoised, (1 - 0.6**2) * noisy)


def test_score_matches_finite_differences() -> None:
    model = build(perturb=True, noise_std=1.0).double()
    noisy, labels, step = torch.randn(1, *SHAPE, dtype=torch.float64), torch.tensor([1]), 1e-5
    direction = torch.randn(1, *SHAPE, dtype=torch.float64)
    with torch.no_grad():
        ahead, behind = (model.log_prob(noisy + s * direction, labels) for s in (step, -step))
        score = model.denoise(noisy, labels) - noisy
    torch.testing.assert_close(
        (score * direction).sum(), ((ahead - behind) / (2 * step))[0], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("denoise", ["none", "decoder"])
def test_samples_stay_noisy_where_nothing_denoises_them(denoise: str) -> None:
    model, random = build(perturb=True, denoise=denoise), IndexedRandom(0, (0, 1))
    plain = build(SimFlow)
    plain.load_state_dict(model.state_dict())
    labels = torch.tensor([0, 1])
    expected = plain.sample(labels, (2, *SHAPE), 0.0, random)
    assert torch.equal(model.sample(labels, (2, *SHAPE), 0.0, random), expected)


def test_score_denoised_samples_are_the_noisy_ones_denoised() -> None:
    scored, noisy = build(perturb=True), build(denoise="none")
    noisy.load_state_dict(scored.state_dict())
    labels, random = torch.tensor([0, 1]), IndexedRandom(0, (0, 1))
    raw = noisy.sample(labels, (2, *SHAPE), 0.5, random)
    torch.testing.assert_close(scored.sample(labels, (2, *SHAPE), 0.5, random), scored.denoise(raw, labels))


def test_denoising_leaves_no_gradient_behind() -> None:
    model = build(perturb=True)
    samples = model.sample(None, (2, *SHAPE), 0.0, IndexedRandom(0, (0, 1)))
    assert not samples.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_sample_depends_on_its_index_only() -> None:
    model = build(perturb=True)
    labels = torch.tensor([0, 1, 2])
    together = model.sample(labels, (3, *SHAPE), 0.5, IndexedRandom(0, (4, 5, 6)))
    alone = model.sample(labels[1:2], (1, *SHAPE), 0.5, IndexedRandom(0, (5,)))
    # Batches of two sizes round otherwise.
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-3)


def test_two_training_steps_change_every_weight_that_matters() -> None:
    model = build(perturb=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(2):
        loss = model.training_losses(torch.randn(4, *SHAPE), torch.tensor([0, 1, 2, -1]), None, RANDOM)["nll"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(not torch.equal(before[name], p) for name, p in model.named_parameters())


def test_posterior_noise_is_not_added_twice() -> None:
    latents = torch.randn(4, *SHAPE)
    assert build(denoise="decoder").add_noise(latents, RANDOM) is latents


def test_noise_std_with_a_denoising_decoder_is_refused() -> None:
    with pytest.raises(ValidationError, match="noise_std has no effect with denoise: decoder"):
        build(denoise="decoder", noise_std=0.3)


@pytest.mark.parametrize("options", [{}, {"denoise": "decoder"}, {"denoise": "none", "noise_std": 0.7}])
def test_resolved_options_reproduce_themselves(options: dict[str, Any]) -> None:
    resolved = StarFlow.Options.model_validate(options)
    assert StarFlow.Options.model_validate(resolved.model_dump(mode="json")) == resolved


@pytest.mark.parametrize("noise_std", [0.0, -0.1])
def test_noise_std_must_be_positive(noise_std: float) -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        build(noise_std=noise_std)
