"""DiT: its loss by hand, its steps, and sampling with the exact noise."""

import torch
from torch import Tensor

from simflow_plugin.contracts import ModelContext
from simflow_plugin.models.dit import DiT
from simflow_plugin.randomness import BatchRandom, IndexedRandom

SHAPE = (2, 4, 4)


def build(**options: object) -> DiT:
    mapping = {"backbone": {"width": 16, "depth": 1, "num_heads": 2}, **options}
    return DiT(DiT.Options.model_validate(mapping), ModelContext(SHAPE, num_classes=3))


def test_loss_of_a_new_model_is_the_mean_square_of_the_noise() -> None:
    latents, noise = torch.randn(2, 3, *SHAPE)
    loss = build().losses_at(latents, None, None, torch.tensor([0, 500, 999]), noise)["denoising"]
    torch.testing.assert_close(loss, noise.square().mean())


def test_network_sees_variance_preserving_mixtures() -> None:
    model, seen = build(), []
    model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][:, 0, 0, 0]))
    steps, ones, zeros = torch.tensor([0, 500, 999]), torch.ones(3, *SHAPE), torch.zeros(3, *SHAPE)
    model.losses_at(ones, None, None, steps, zeros)
    model.losses_at(zeros, None, None, steps, ones)
    torch.testing.assert_close(seen[0] ** 2 + seen[1] ** 2, torch.ones(3))
    assert seen[0][0] > 0.99
    assert seen[0][2] < 0.01


def test_steps_cover_the_schedule_uniformly() -> None:
    steps = build().sample_times(20_000, BatchRandom(0, 0, 0, 20_000), torch.device("cpu"))
    assert steps.dtype == torch.int64
    assert (int(steps.min()), int(steps.max())) == (0, 999)
    assert abs(steps.double().mean() - 499.5) < 10


def test_exact_noise_samples_the_data() -> None:
    model = build(sampling={"num_steps": 200})

    def exact(latents: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """E[eps given x_n] for data N(2, 0.5^2)."""
        a = model.alphas_cumprod[t].view(-1, 1, 1, 1)
        return (1 - a).sqrt() * (latents - a.sqrt() * 2) / (a * 0.25 + 1 - a)

    model.predict = exact  # type: ignore[method-assign]
    random = IndexedRandom(0, tuple(range(4)))
    expected = 2 + 0.5 * random.normal("latent", (4, *SHAPE))
    torch.testing.assert_close(model.sample(None, (4, *SHAPE), 0.0, random), expected, rtol=0, atol=0.05)
