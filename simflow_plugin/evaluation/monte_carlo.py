"""Expectations over the posterior by K draws: a control variate against their noise, and the error that is left.

With z = mean + std * eps, and H(q) the entropy of q(z given x),

    h(eps) = log q(z given x) + H(q) = 1/2 sum (1 - eps^2),    E[h] = 0,    Var[h] = dims / 2,

so f - c h has the mean of f for every c. It has the least variance at c = Cov[f, h] / Var[h], and c of a sum is the sum
of the terms' c. Where q is the true posterior, log P(x given z) + log p(z) = log q(z given x) + log p(x): c is 1, the
sampled log q takes the place of the entropy, and the bound has no variance at all (Roeder et al., arXiv:1703.09194).
Where std is small, as a learned one may be, f hardly depends on eps: c is 0, and c = 1 would only add noise. So c is
fitted, on other images than those that are scored.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ControlVariate(NamedTuple):
    """Coefficients c of h for the two random terms of the bound: log p(z), and log P(x given z)."""

    log_prob: float
    reconstruction: float

    @classmethod
    def fit(cls, log_prob: Tensor, reconstruction: Tensor, control: Tensor) -> ControlVariate:
        """Return the coefficients of least variance for K >= 2 draws of B images, each (K, B)."""
        return cls(coefficient(log_prob, control), coefficient(reconstruction, control))


NO_CONTROL = ControlVariate(0.0, 0.0)
ENTROPY_REPLACED = ControlVariate(1.0, 0.0)
"""log p(z) - log q(z given x) in place of log p(z) + H(q)."""


def control_values(noise: Tensor) -> Tensor:
    """Return h = log q(z given x) + H(q) of z = mean + std * noise, (B,), float64, nats, on the CPU.

    Args:
        noise: (B, C, h, w), standard normal. The same for every mean and std, learned ones and those with noise added.
    """
    return 0.5 * (1 - noise.double().square()).flatten(1).sum(1).cpu()


def coefficient(values: Tensor, control: Tensor) -> float:
    """Return the least-squares slope of values on control within images, what differs between images left out.

    Args:
        values: (K, B), K >= 2 draws of B images.
        control: (K, B), h of the same draws.
    Returns:
        the slope; 0 where the control does not vary, as with one draw.
    """
    values, control = (part.double() - part.double().mean(0) for part in (values, control))
    variation = control.square().sum()
    return float((values * control).sum() / variation) if variation > 0 else 0.0


def mean_and_error(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean over draws (K, B), (B,), and its standard error, (B,), which is NaN of a single draw."""
    if len(draws) == 1:
        return draws[0], torch.full_like(draws[0], torch.nan)
    return draws.mean(0), draws.std(0) / len(draws) ** 0.5


def pooled_error(errors: Tensor) -> float:
    """Return the standard error of the mean over images from that of each, (N,); NaN if one of them is not known.

    It says how far the number would move with other draws for the same images, which the interval over images, that
    holds this part too, does not tell apart from other images.
    """
    return float(errors.square().sum().sqrt()) / len(errors)
