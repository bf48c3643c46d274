"""DiT: its loss by hand, its steps; DDIM on Gaussian data, where the expected noise is known in closed form."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from simflow_plugin.contracts import ModelContext
from simflow_plugin.models.dit import DiT, ddim, ddim_schedule, ddim_times
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


MEAN, STD = 1.5, 0.5
ALPHA_BAR = ddim_schedule().alphas_cumprod.double()


def exact_noise(x: Tensor, step: int) -> Tensor:
    """E[eps given x_n] for data N(MEAN, STD^2)."""
    a = ALPHA_BAR[step]
    return (1 - a).sqrt() * (x - a.sqrt() * MEAN) / (a * STD**2 + 1 - a)


def draw(num_steps: int, eta: float, rows: int = 400) -> tuple[Tensor, Tensor]:
    noise = torch.randn(rows, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return noise, ddim(exact_noise, noise, num_steps, eta, IndexedRandom(0, tuple(range(rows))))


def test_deterministic_ddim_maps_noise_linearly_onto_the_data() -> None:
    noise, samples = draw(200, eta=0.0)
    torch.testing.assert_close(samples, MEAN + STD * noise, rtol=0, atol=0.05)


def test_stochastic_ddim_reaches_the_data_distribution() -> None:
    _, samples = draw(200, eta=1.0)
    assert abs(samples.mean() - MEAN) < 0.05
    assert abs(samples.std() - STD) < 0.05


def test_more_steps_come_closer_to_the_data() -> None:
    errors = []
    for num_steps in (10, 40, 160):
        noise, samples = draw(num_steps, eta=0.0, rows=20)
        errors.append((samples - MEAN - STD * noise).abs().max())
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("num_steps", [1, 7, 15, 61, 201, 300, 501, 600, 999])
def test_any_number_of_steps_lands_where_the_recursion_of_the_variance_says(num_steps: int) -> None:
    """Of Gaussian data each deterministic step multiplies the distance to the mean by a known number."""
    times, factor = ddim_times(num_steps), 1.0
    levels = [float(ALPHA_BAR[time]) for time in times] + [1.0]
    for a, b in pairwise(levels):
        variance = a * STD**2 + 1 - a
        factor *= (math.sqrt(a * b) * STD**2 + math.sqrt((1 - a) * (1 - b))) / variance
    noise, samples = draw(num_steps, eta=0.0, rows=4)
    start = math.sqrt(levels[0]) * MEAN
    torch.testing.assert_close(samples, MEAN + factor * (noise - start), rtol=0, atol=1e-4)


def test_every_number_of_steps_visits_distinct_times_from_the_last_one_down() -> None:
    for num_steps in range(1, 1001):
        times = ddim_times(num_steps)
        assert len(times) == num_steps
        assert times[0] == 999
        assert times[-1] >= 0
        assert all(later < earlier for earlier, later in pairwise(times))


def test_sampling_starts_at_the_noisiest_step_and_ends_at_data() -> None:
    steps = []

    def predict(x: Tensor, step: int) -> Tensor:
        steps.append(step)
        return torch.zeros_like(x)

    samples = ddim(predict, torch.ones(1, 1, dtype=torch.float64), 4, 0.0, IndexedRandom(0, (0,)))
    assert steps == [999, 749, 499, 249]
    # With no predicted noise every step divides by sqrt(abar), and the last one ends at abar = 1.
    torch.testing.assert_close(samples, 1 / ALPHA_BAR[999].sqrt().view(1, 1), rtol=1e-5, atol=0)


def test_schedule_is_the_published_one() -> None:
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    torch.testing.assert_close(ALPHA_BAR, (1 - betas).cumprod(0), rtol=1e-4, atol=1e-9)
