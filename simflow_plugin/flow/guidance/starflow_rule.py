"""STARFlow's guidance: the Gaussian p_c^(1 + w) / p_u^w, with its variance ratio clipped to stay a Gaussian.

With r = min(s_c / s_u, 1)^2: s^2 = s_c^2 / (1 + w - w r) and mu = ((1 + w) mu_c - w r mu_u) / (1 + w - w r).
The denominator is at least 1, so s is positive and finite for every w >= 0.
Reference: STARFlow, arXiv:2506.06276.
"""

from __future__ import annotations

import torch
from torch import Tensor

from simflow_plugin.flow.affine import Affine
from simflow_plugin.flow.guidance.rule import GuidanceRule
from simflow_plugin.registry import GUIDANCE


@GUIDANCE.register("starflow")
class StarflowGuidance(GuidanceRule):
    """See `GuidanceRule`."""

    def combine(self, conditional: Affine, unconditional: Affine, weight: Tensor) -> Affine:
        ratio = (2 * (conditional.log_scale - unconditional.log_scale).clamp(max=0.0)).exp()  # r
        excess = weight * (1 - ratio)
        log_scale = conditional.log_scale - 0.5 * torch.log1p(excess)
        # Equal to the formula above, but without the difference of two large products.
        step = weight * ratio / (1 + excess)
        return Affine(conditional.shift + step * (conditional.shift - unconditional.shift), log_scale)
