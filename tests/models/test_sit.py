"""SiT: its loss by hand, time sampling by option, batch norm of latents."""

import math

import pytest
import torch
from torch import Tensor

from simflow_plugin.contracts import ModelContext
from simflow_plugin.diffusion.interpolants import INTERPOLANTS
from simflow_plugin.models.sit import SiT
from simflow_plugin.randomness import BatchRandom, IndexedRandom

SHAPE = (2, 4, 4)


def build(**options: object) -> SiT:
    mapping = {"backbone": {"width": 16, "depth": 1, "num_heads": 2}, **options}
    return SiT(SiT.Options.model_validate(mapping), ModelContext(SHAPE, num_classes=3))


@pytest.mark.parametrize("interpolant", INTERPOLANTS)
def test_loss_of_a_new_model_is_the_mean_square_of_the_velocity(interpolant: str) -> None:
    latents, noise = torch.randn(2, 3, *SHAPE)
    t = torch.tensor([0.1, 0.6, 0.9]).view(-1, 1, 1, 1)
    if interpolant == "linear":
        velocity = noise - latents
    else:
        velocity = math.pi / 2 * (torch.cos(math.pi / 2 * t) * noise - torch.sin(math.pi / 2 * t) * latents)
    model = build(interpolant=interpolant)  # its prediction is zero
    loss = model.losses_at(latents, None, None, t.flatten(), noise)["denoising"]
    torch.testing.assert_close(loss, velocity.square().mean())


def test_network_sees_the_interpolated_latents_and_the_time() -> None:
    model, seen = build(), []
    model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    latents, noise, t = torch.ones(2, *SHAPE), torch.zeros(2, *SHAPE), torch.tensor([0.25, 1.0])
    model.losses_at(latents, None, None, t, noise)
    assert torch.equal(seen[0][0][:, 0, 0, 0], 1 - t)
    assert torch.equal(seen[0][1], t)


def times_of(model: SiT, count: int = 4000) -> Tensor:
    return model.sample_times(count, BatchRandom(1, 0, 0, count), torch.device("cpu")).double()


def test_uniform_times_have_uniform_mean_and_variance() -> None:
    t = times_of(build(time_sampling="uniform"))
    assert 0 <= t.min() <= t.max() < 1
    assert abs(t.mean() - 0.5) < 0.02
    assert abs(t.var() - 1 / 12) < 0.005


@pytest.mark.parametrize("interpolant", INTERPOLANTS)
def test_log_normal_times_have_standard_normal_log_noise_ratio(interpolant: str) -> None:
    model = build(time_sampling="log_normal", interpolant=interpolant)
    t = times_of(model)
    assert 0 <= t.min() <= t.max() < 1
    c = model.interpolant.at(t)
    log_ratio = (c.sigma / c.alpha).log()
    assert abs(log_ratio.mean()) < 4 / math.sqrt(len(t))
    assert abs(log_ratio.std() - 1) < 4 / math.sqrt(len(t))


def test_batch_norm_makes_the_loss_blind_to_the_latents_scale() -> None:
    model = build(normalizes_latents=True).train()
    latents, noise, t = torch.randn(8, *SHAPE), torch.randn(8, *SHAPE), torch.linspace(0.1, 0.9, 8)
    losses = [model.losses_at(s * latents + s, None, None, t, noise)["denoising"] for s in (1.0, 10.0)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=0)


def test_batch_norm_has_no_parameters() -> None:
    assert sum(p.numel() for p in build().parameters()) == sum(
        p.numel() for p in build(normalizes_latents=True).parameters()
    )


def test_momentum_moves_the_running_statistics() -> None:
    model = build(normalizes_latents=True, norm_momentum=0.25).train()
    latents = torch.randn(8, *SHAPE) + 4
    model.normalize(latents)
    assert model.latent_norm is not None
    torch.testing.assert_close(model.latent_norm.running_mean, 0.25 * latents.mean(dim=(0, 2, 3)))


def test_denormalize_undoes_normalize() -> None:
    model = build(normalizes_latents=True).train()
    latents = 3 * torch.randn(8, *SHAPE) - 1
    model.normalize(latents)
    model.eval()
    torch.testing.assert_close(model.denormalize(model.normalize(latents)), latents)


def test_samples_are_denormalized() -> None:
    model = build(normalizes_latents=True)
    assert model.latent_norm is not None
    mean, var = model.latent_norm.running_mean, model.latent_norm.running_var
    assert mean is not None
    assert var is not None
    mean.fill_(5.0)
    var.fill_(4.0)
    random = IndexedRandom(0, (0, 1))
    # A new model's velocity is zero, so that the sample is the noise itself.
    expected = random.normal("latent", (2, *SHAPE)) * math.sqrt(4.0 + 1e-4) + 5
    torch.testing.assert_close(model.sample(None, (2, *SHAPE), 0.0, random), expected)


def test_exact_velocity_samples_the_data() -> None:
    model = build(sampling={"method": "heun", "num_steps": 40})

    def exact(latents: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """Velocity for data N(2, 0.5^2) on the linear path."""
        time = t.view(-1, 1, 1, 1)
        var = (1 - time) ** 2 * 0.25 + time**2
        return -2.0 + (time - (1 - time) * 0.25) / var * (latents - (1 - time) * 2.0)

    model.predict = exact  # type: ignore[method-assign]
    random = IndexedRandom(0, tuple(range(4)))
    expected = 2 + 0.5 * random.normal("latent", (4, *SHAPE))
    torch.testing.assert_close(model.sample(None, (4, *SHAPE), 0.0, random), expected, rtol=0, atol=0.02)
