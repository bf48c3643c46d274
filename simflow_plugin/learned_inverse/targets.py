"""Pairs of noise and latents from a frozen flow, and the errors that the student is trained on.

Two sources of pairs (u, z):

    data:   z an encoded image, u = f_w(z, y) with all inner states of f_w; parallel passes of the flow
    exact:  u ~ N(0, I), z = f_w^-1(u, y); the sequential inverse, for the noise that samples start from

f_w is the forward pass of guided sampling (`flow/guided_forward.py`): its inverse with weight w gives z back, so
that data teach every weight at no sequential cost. Noise of data is N(0, I) only as far as the flow fits them.

Errors are squared, relative to the mean square of what is predicted, so that no state outweighs another by its scale:

    E(a, b) = mean (a - b)^2 / mean b^2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TINY = 1e-12


@dataclass(frozen=True)
class Pairs:
    """Targets that the student learns from.

    Args:
        noise: (B, C, h, w), its input.
        latents: (B, C, h, w), what it should return.
        labels: (B,) int64, or None.
        guidance: (B,), weight w of the target.
        states: inner states of the teacher in generation order, (B, T, D) each.
    """

    noise: Tensor
    latents: Tensor
    labels: Tensor | None
    guidance: Tensor
    states: list[Tensor]


def joined(first: Pairs, second: Pairs) -> Pairs:
    """Return the rows of both."""
    labels = None
    if first.labels is not None and second.labels is not None:
        labels = torch.cat([first.labels, second.labels])
    return Pairs(
        torch.cat([first.noise, second.noise]),
        torch.cat([first.latents, second.latents]),
        labels,
        torch.cat([first.guidance, second.guidance]),
        [torch.cat(pair) for pair in zip(first.states, second.states, strict=True)],
    )


def relative_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Return mean (prediction - target)^2 / mean target^2, a float32 scalar."""
    target = target.detach().float()
    return (prediction.float() - target).square().mean() / target.square().mean().clamp(min=TINY)


def state_error(predictions: Sequence[Tensor], states: Sequence[Tensor]) -> Tensor:
    """Return the mean relative error over inner states, (B, T, D) each."""
    errors = [relative_error(p, s) for p, s in zip(predictions, states, strict=True)]
    return torch.stack(errors).mean()
