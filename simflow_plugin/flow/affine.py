"""The affine head: raw outputs of a block -> shift and scale, and the map u = (x - b) / s with its inverse.

Everything here is float32 (float64 for float64 input) whatever the compute type. Scales travel as logarithms:
log s is what the log-determinant needs, and 1 / s = exp(-log s) cannot divide by zero.
Reference: STARFlow, arXiv:2506.06276; TarFlow, arXiv:2412.06329.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from simflow_plugin.flow.architecture import FlowArchitecture

SOFTPLUS_OFFSET = math.log(math.e - 1)
"""softplus of this is 1: raw output zero is the identity."""


class Affine(NamedTuple):
    """Parameters of x = s u + b: `shift` b and `log_scale` log s, both (B, n, D), at least float32."""

    shift: Tensor
    log_scale: Tensor


def affine_parameters(raw: Tensor, config: FlowArchitecture) -> Affine:
    """Return shift and log-scale from the raw outputs of a block.

    Args:
        raw: (B, n, 2 D), the scale's half first; (B, n, D), the shift only, with `scale: unit`.
        config: `scale`, `soft_clip` and `soft_clips_shift` are read.
    """
    raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
    if config.scale == "unit":
        return Affine(raw, torch.zeros_like(raw))
    if config.soft_clip is not None and config.soft_clips_shift:
        raw = _soft_clip(raw, config.soft_clip)
    log_scale, shift = raw.chunk(2, dim=-1)
    if config.soft_clip is not None and not config.soft_clips_shift:
        log_scale = _soft_clip(log_scale, config.soft_clip)
    if config.scale == "softplus":
        log_scale = _log_softplus(log_scale + SOFTPLUS_OFFSET)
    return Affine(shift, log_scale)


def affine_forward(tokens: Tensor, affine: Affine) -> tuple[Tensor, Tensor]:
    """Push tokens (B, T, D) towards noise, u = (x - b) / s.

    Returns:
        noise (B, T, D) in the dtype of `tokens`; logdet (B,), nats, at least float32.
    """
    noise = (tokens - affine.shift) * torch.exp(-affine.log_scale)
    return noise.to(tokens.dtype), -affine.log_scale.sum(dim=(1, 2))


def affine_inverse(noise: Tensor, affine: Affine) -> Tensor:
    """Pull noise (B, n, D) back to tokens, x = s u + b, at least float32."""
    return torch.addcmul(affine.shift, noise.to(affine.shift.dtype), torch.exp(affine.log_scale))


def _soft_clip(values: Tensor, bound: float) -> Tensor:
    return bound * torch.tanh(values / bound)


def _log_softplus(values: Tensor) -> Tensor:
    # softplus(v) = exp(v) (1 - exp(v) / 2 + ...): below -30 its logarithm is v, to more digits than float64
    # has room for in sums of order one, and softplus itself would underflow in float32 below -103.
    safe = values.clamp(min=-30.0)  # keeps the gradient of the branch not taken finite
    return torch.where(values > -30.0, functional.softplus(safe).log(), values)
