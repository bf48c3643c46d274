"""Adaptive layer norm (adaLN): a condition shifts and scales the normalised input of attention and MLP.

    h <- h + gate_a attention((1 + scale_a) LN(h) + shift_a),   h <- h + gate_m mlp((1 + scale_m) LN(h) + shift_m)

All vectors are one linear map of SiLU(c), c the embedded condition, and LN has no parameters. The map starts at zero:
with gates (DiT's six vectors, adaLN-Zero) a new layer is the identity; without (ml-starflow's four) it is the plain
layer. The vectors are the same for every token, so sampling computes them once a block.
Reference: DiT, arXiv:2212.09748, section 3.2.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from simflow_plugin.flow.matrix_product import Linear

NORM_EPS = 1e-6


class Modulation(NamedTuple):
    """Vectors (B, 1, width) of attention or MLP; `gate` is None without gates."""

    shift: Tensor
    scale: Tensor
    gate: Tensor | None

    def apply(self, normed: Tensor) -> Tensor:
        """Return the input (B, n, width) of attention or MLP from the normalised tokens."""
        return normed * (1 + self.scale) + self.shift

    def weigh(self, update: Tensor) -> Tensor:
        """Return what is added to the hidden tokens (B, n, width)."""
        return update if self.gate is None else self.gate * update


class LayerModulation(NamedTuple):
    """The vectors of one layer."""

    attention: Modulation
    mlp: Modulation


class AdaLN(nn.Module):
    """An embedded condition (B, 1, width) -> the vectors of one layer.

    The rows of the map are in DiT's order: shift, scale (and gate) of attention, then of the MLP.
    """

    def __init__(self, width: int, has_gates: bool) -> None:
        super().__init__()
        self.vectors_per_half = 3 if has_gates else 2
        self.proj = Linear(width, 2 * self.vectors_per_half * width)
        self.reset()

    def reset(self) -> None:
        """Set the map to zero."""
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, condition: Tensor) -> LayerModulation:
        vectors = self.proj(functional.silu(condition)).chunk(2 * self.vectors_per_half, dim=-1)
        halves = vectors[: self.vectors_per_half], vectors[self.vectors_per_half :]
        return LayerModulation(*(Modulation(h[0], h[1], h[2] if len(h) == 3 else None) for h in halves))
