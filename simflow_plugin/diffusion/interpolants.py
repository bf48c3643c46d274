"""Interpolants between data (t = 0) and noise (t = 1), and the conversions between velocity and score.

x_t = alpha_t z + sigma_t eps, v_t = alpha_t' z + sigma_t' eps. `linear`: alpha = 1 - t, sigma = t.
`cosine` (GVP, generalised variance preserving): alpha = cos(pi t / 2), sigma = sin(pi t / 2).
Reference: SiT, arXiv:2401.08740, section 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from simflow_plugin.errors import ConfigError
from simflow_plugin.options import did_you_mean


@dataclass(frozen=True)
class Coefficients:
    """alpha_t, sigma_t and their derivatives in t, each shaped like the t they were asked for."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor


@dataclass(frozen=True)
class Interpolant:
    """A named interpolant.

    Args:
        name: `linear` or `cosine`.
    Raises:
        ConfigError: for another name.
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in INTERPOLANTS:
            raise ConfigError(
                f"interpolant: unknown name `{self.name}`.{did_you_mean(self.name, INTERPOLANTS)}"
            )

    def at(self, t: Tensor) -> Coefficients:
        """Return the coefficients at times t in [0, 1]."""
        if self.name == "linear":
            return Coefficients(1 - t, t, -torch.ones_like(t), torch.ones_like(t))
        angle = math.pi / 2 * t
        cos, sin = angle.cos(), angle.sin()
        return Coefficients(cos, sin, -math.pi / 2 * sin, math.pi / 2 * cos)

    def interpolate(self, latents: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (x_t, v_t), both (B, ...), for latents and noise (B, ...) and t (B,)."""
        c = self.at(expand_like(t, latents))
        return c.alpha * latents + c.sigma * noise, c.d_alpha * latents + c.d_sigma * noise

    def score_from_velocity(self, velocity: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return grad log p_t(x_t), (B, ...), from the velocity at x_t; t (B,) in (0, 1].

        s = (alpha v - alpha' x) / (alpha' sigma^2 - alpha sigma sigma'), which has no singularity at t = 1.
        """
        c = self.at(expand_like(t, x_t))
        return (c.alpha * velocity - c.d_alpha * x_t) / (
            c.d_alpha * c.sigma**2 - c.alpha * c.sigma * c.d_sigma
        )

    def time_of_noise_ratio(self, ratio: Tensor) -> Tensor:
        """Return the t in (0, 1) at which sigma_t / alpha_t is `ratio` > 0."""
        if self.name == "linear":
            return ratio / (1 + ratio)
        return 2 / math.pi * torch.atan(ratio)


INTERPOLANTS = ("linear", "cosine")


def expand_like(t: Tensor, x: Tensor) -> Tensor:
    """Give t (B,) trailing axes, so that it broadcasts against x (B, ...)."""
    return t.view(-1, *[1] * (x.dim() - 1))
