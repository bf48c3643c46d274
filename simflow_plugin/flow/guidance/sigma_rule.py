"""iTARFlow's guidance, linear in the scale: sigma = sigma_c + w (sigma_c - sigma_u), mu = mu_c + w (mu_c - mu_u).

TarFlow's `linear` does so in log sigma, where the result is always positive; here it is not where sigma_u is more than
(1 + 1 / w) sigma_c, so sigma stays above `FLOOR` sigma_c. Guidance of the first generated block only is the paper's.
Reference: iTARFlow, arXiv:2604.20041.
"""

from __future__ import annotations

import torch
from torch import Tensor

from simflow_plugin.flow.affine import Affine
from simflow_plugin.flow.guidance.options import SigmaGuidanceOptions
from simflow_plugin.flow.guidance.rule import GuidanceRule
from simflow_plugin.registry import GUIDANCE

FLOOR = 1e-3
LARGEST_LOG_RATIO = 60.0
"""Of sigma_u / sigma_c: its exponential is finite, so that a weight of 0 gives back the conditional scale."""


@GUIDANCE.register("linear_sigma")
class SigmaGuidance(GuidanceRule):
    """See `GuidanceRule`."""

    Options = SigmaGuidanceOptions

    def combine(self, conditional: Affine, unconditional: Affine, weight: Tensor) -> Affine:
        log_ratio = (unconditional.log_scale - conditional.log_scale).clamp(max=LARGEST_LOG_RATIO)
        growth = 1 - weight * torch.expm1(log_ratio)  # sigma / sigma_c
        return Affine(
            conditional.shift + weight * (conditional.shift - unconditional.shift),
            conditional.log_scale + growth.clamp(min=FLOOR).log(),
        )
