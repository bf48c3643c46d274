"""The forward pass of guided sampling: the noise from which the guided inverse makes given tokens, in parallel.

The guided inverse of a block is x_t = s_t u_t + b_t with (b_t, s_t) combined from two passes over x_0 .. x_{t-1}. Where
the tokens are given, both passes and hence u_t = (x_t - b_t) / s_t are parallel, and the weight may differ by row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from simflow_plugin.contracts import NO_LABEL
from simflow_plugin.errors import ShapeError
from simflow_plugin.flow.affine import affine_forward

if TYPE_CHECKING:
    from simflow_plugin.flow.flow import TransformerFlow
    from simflow_plugin.flow.guidance import GuidanceRule


def guided_trajectory(
    flow: TransformerFlow, tokens: Tensor, labels: Tensor, guidance: Tensor, rule: GuidanceRule
) -> list[Tensor]:
    """Return the states between tokens and noise of guided sampling, K + 1 times (B, T, D), in training order.

    State K is the noise u with `flow.inverse(u, labels, guidance=w) == tokens`; at w = 0 the states are those of
    `flow.trajectory`. Gradients reach the tokens.

    Args:
        flow: with classes.
        tokens: (B, T, D), raster order.
        labels: (B,) int64; a row of `NO_LABEL` is not guided.
        guidance: (B,), w >= 0 of each row.
        rule: how both halves combine.
    Raises:
        ShapeError: for wrong shapes, or a flow without classes.
    """
    if flow.config.num_classes is None:
        raise ShapeError("guidance: this flow has no classes to guide towards")
    if guidance.shape != labels.shape:
        raise ShapeError(
            f"guidance: found {tuple(guidance.shape)}, expected {tuple(labels.shape)}, as the labels"
        )
    conditioned, states = flow._conditioned(labels), [tokens]
    rotation = conditioned.rotation
    for index, block in enumerate(conditioned.blocks):
        # Rules give the weights of all tokens for one w, in proportion to it.
        pattern = rule.weights(1.0, index, flow.config.num_tokens, tokens)
        if pattern is None or not block.is_conditional:
            states.append(block(states[-1], labels, rotation, None).noise)
        else:
            weights = guidance.to(tokens.dtype)[:, None, None] * pattern
            ordered = block.reorder(states[-1])
            rows = torch.cat([labels, torch.full_like(labels, NO_LABEL)])
            both, _ = block.affine_of(torch.cat([ordered, ordered]), rows, rotation)
            guided = rule.combine_halves(both, weights)
            states.append(block.reorder(affine_forward(ordered, guided)[0]))
    if flow.prior_log_std is not None:
        states[-1] = states[-1] * torch.exp(-flow.prior_log_std.to(states[-1].dtype))
    return states
