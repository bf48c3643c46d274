"""Pairs of noise and latents from a frozen flow, and the errors that the student is trained on.

Two sources of pairs (u, z):

    data:   z an encoded image, u = f(z, y), with all inner states of f; one parallel pass of the flow
    exact:  u ~ N(0, I), z = f^-1(u, y) with guidance w; the sequential inverse, so that the student sees guidance

Errors are squared, relative to the mean square of what is predicted, so that no state outweighs another by its scale:

    E(a, b) = mean (a - b)^2 / mean b^2

A third source needs no target: u ~ N(0, I) and the round trip u -> G(u, y, w) -> f_w of that, which is u again if G is
the inverse. f_w, the forward pass of guided sampling, is parallel, so noise and guidance cost nothing sequential; and
an error counts by how unlikely it is under the flow, where the latents' square error forgives an average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from simflow_plugin.flow import TransformerFlow
from simflow_plugin.flow.guidance import GuidanceRule
from simflow_plugin.flow.guided_forward import guided_trajectory

TINY = 1e-12


@dataclass(frozen=True)
class Pairs:
    """What the student learns from.

    Args:
        noise: (B, C, h, w), its input.
        latents: (B, C, h, w), what it should return.
        labels: (B,) int64, or None.
        guidance: (B,), weight w of the target.
        states: inner states of the teacher in generation order, (n, T, D) each, of the first n rows: those from data.
    """

    noise: Tensor
    latents: Tensor
    labels: Tensor | None
    guidance: Tensor
    states: list[Tensor]


def joined(first: Pairs, second: Pairs) -> Pairs:
    """Return the rows of both; the states are those of `first`."""
    labels = None
    if first.labels is not None and second.labels is not None:
        labels = torch.cat([first.labels, second.labels])
    return Pairs(
        torch.cat([first.noise, second.noise]),
        torch.cat([first.latents, second.latents]),
        labels,
        torch.cat([first.guidance, second.guidance]),
        first.states,
    )


def relative_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Return mean (prediction - target)^2 / mean target^2, a float32 scalar."""
    target = target.detach().float()
    return (prediction.float() - target).square().mean() / target.square().mean().clamp(min=TINY)


def round_trip_error(
    flow: TransformerFlow,
    rule: GuidanceRule,
    prediction: Tensor,
    noise: Tensor,
    labels: Tensor | None,
    guidance: Tensor,
) -> Tensor:
    """Return the relative error of the noise that predicted tokens come from, a float32 scalar.

    Args:
        flow: f, frozen; gradients pass through it to `prediction`.
        rule: of guidance.
        prediction: (B, T, D), tokens G(u, y, w).
        noise: (B, T, D), u.
        labels: (B,) int64, or None for a flow without classes.
        guidance: (B,), w >= 0.
    """
    if labels is None:
        return relative_error(flow.trajectory(prediction)[-1], noise)
    return relative_error(guided_trajectory(flow, prediction, labels, guidance, rule)[-1], noise)


def state_error(predictions: Sequence[Tensor], states: Sequence[Tensor]) -> Tensor:
    """Return the mean relative error over inner states.

    Args:
        predictions: (B, T, D) per state; rows beyond those of `states` have no target.
        states: (n, T, D) per state, n <= B.
    """
    errors = [relative_error(p[: len(s)], s) for p, s in zip(predictions, states, strict=True)]
    return torch.stack(errors).mean()
