"""Samplers on Gaussian data, where velocity, flow map and marginals are known in closed form."""

import pytest
import torch
from torch import Tensor

from simflow_plugin.diffusion.interpolants import INTERPOLANTS, Interpolant
from simflow_plugin.diffusion.samplers import Velocity, integrate
from simflow_plugin.randomness import IndexedRandom

MEAN, STD = 1.5, 0.5


def gaussian_velocity(interpolant: Interpolant) -> Velocity:
    """The exact velocity E[x_t' given x_t] for data N(MEAN, STD^2)."""

    def velocity(x: Tensor, t: float, step_start: float) -> Tensor:
        c = interpolant.at(torch.tensor(t, dtype=x.dtype))
        var = c.alpha**2 * STD**2 + c.sigma**2
        slope = (c.alpha * c.d_alpha * STD**2 + c.sigma * c.d_sigma) / var
        return c.d_alpha * MEAN + slope * (x - c.alpha * MEAN)

    return velocity


def draw(name: str, num_steps: int, noise: Tensor, interpolant: str = "linear") -> Tensor:
    path = Interpolant(interpolant)
    random = IndexedRandom(seed=0, indices=tuple(range(len(noise))))
    return integrate(name, gaussian_velocity(path), noise, num_steps, path, random)


@pytest.mark.parametrize("interpolant", INTERPOLANTS)
@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2)])
def test_ode_samplers_converge_at_their_order(name: str, order: int, interpolant: str) -> None:
    noise = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    exact = MEAN + STD * noise
    coarse, fine = ((draw(name, steps, noise, interpolant) - exact).abs().max() for steps in (64, 128))
    assert fine < 0.02
    assert abs(torch.log2(coarse / fine) - order) < 0.35


@pytest.mark.parametrize("interpolant", INTERPOLANTS)
def test_sde_sampler_reaches_the_data_distribution(interpolant: str) -> None:
    noise = torch.randn(500, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    samples = draw("euler_maruyama", 60, noise, interpolant)
    assert abs(samples.mean() - MEAN) < 0.05
    assert abs(samples.std() - STD) < 0.05


def test_sde_sampler_forgets_the_initial_noise_in_part() -> None:
    noise = torch.randn(300, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    samples = draw("euler_maruyama", 60, noise)
    correlation = torch.corrcoef(torch.stack([noise.flatten(), samples.flatten()]))[0, 1]
    assert correlation < 0.9


@pytest.mark.parametrize(("name", "evaluations"), [("euler", 7), ("heun", 13), ("euler_maruyama", 7)])
def test_number_of_network_evaluations(name: str, evaluations: int) -> None:
    times = []

    def velocity(x: Tensor, t: float, step_start: float) -> Tensor:
        times.append(t)
        return -x

    integrate(name, velocity, torch.ones(1, 1), 7, Interpolant("linear"), IndexedRandom(0, (0,)))
    assert len(times) == evaluations
    assert draw(name, 1, torch.ones(2, 3)).shape == (2, 3)
