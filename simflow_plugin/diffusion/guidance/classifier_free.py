"""Classifier-free guidance: f = f_c + w (f_c - f_u); w = 0 is the conditional model.

Reference: arXiv:2207.12598.
"""

from __future__ import annotations

from torch import Tensor

from simflow_plugin.diffusion.guidance.rule import GuidanceRule
from simflow_plugin.registry import DIFFUSION_GUIDANCE


@DIFFUSION_GUIDANCE.register("classifier_free")
class ClassifierFreeGuidance(GuidanceRule):
    """See `GuidanceRule`."""

    def combine(self, conditional: Tensor, unconditional: Tensor, weight: float, time: float) -> Tensor:
        return conditional + weight * (conditional - unconditional)
