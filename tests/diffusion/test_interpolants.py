"""Interpolants: end points, derivatives, and the score of a Gaussian whose velocity is known."""

import math

import pytest
import torch

from simflow_plugin.diffusion.interpolants import INTERPOLANTS, Interpolant
from simflow_plugin.errors import ConfigError

pytestmark = pytest.mark.parametrize("name", INTERPOLANTS)


def test_t_zero_is_data_and_t_one_is_noise(name: str) -> None:
    ends = Interpolant(name).at(torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(ends.alpha, torch.tensor([1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(ends.sigma, torch.tensor([0.0, 1.0], dtype=torch.float64))


def test_derivatives_match_autograd(name: str) -> None:
    t = torch.linspace(0.05, 0.95, 7, dtype=torch.float64, requires_grad=True)
    c = Interpolant(name).at(t)
    for value, derivative in ((c.alpha, c.d_alpha), (c.sigma, c.d_sigma)):
        (expected,) = torch.autograd.grad(value.sum(), t, retain_graph=True)
        torch.testing.assert_close(derivative, expected)


def test_velocity_is_time_derivative_of_interpolation(name: str) -> None:
    latents, noise = torch.randn(
        2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    path, step = Interpolant(name), 1e-6
    difference = path.interpolate(latents, noise, t + step)[0] - path.interpolate(latents, noise, t - step)[0]
    torch.testing.assert_close(
        path.interpolate(latents, noise, t)[1], difference / (2 * step), rtol=0, atol=1e-8
    )


@pytest.mark.parametrize("time", [0.1, 0.5, 1.0])
def test_score_of_gaussian_data_follows_from_its_velocity(name: str, time: float) -> None:
    data_var = 4.0
    t = torch.full((5,), time, dtype=torch.float64)
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    c = Interpolant(name).at(t[:, None])
    var = c.alpha**2 * data_var + c.sigma**2
    velocity = (c.alpha * c.d_alpha * data_var + c.sigma * c.d_sigma) / var * x
    torch.testing.assert_close(Interpolant(name).score_from_velocity(velocity, x, t), -x / var)


def test_time_of_noise_ratio_inverts_the_ratio(name: str) -> None:
    t = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    c = Interpolant(name).at(t)
    torch.testing.assert_close(Interpolant(name).time_of_noise_ratio(c.sigma / c.alpha), t)


def test_unknown_name_lists_choices(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"Did you mean `{name}`.*Known: cosine, linear"):
        Interpolant(name + "s")


def test_cosine_preserves_variance(name: str) -> None:
    c = Interpolant(name).at(torch.linspace(0, 1, 5, dtype=torch.float64))
    total = c.alpha**2 + c.sigma**2
    assert math.isclose(total[2], 1.0 if name == "cosine" else 0.5)
