"""TarFlow's guidance: extrapolate shift and log-scale, mu = mu_c + w (mu_c - mu_u), log s likewise.

MIMFlow uses it in the first generated block only: `first_block_only: true`.

Reference: TarFlow, arXiv:2412.06329.
"""

from __future__ import annotations

from torch import Tensor

from simflow_plugin.flow.affine import Affine
from simflow_plugin.flow.guidance.rule import GuidanceRule
from simflow_plugin.registry import GUIDANCE


@GUIDANCE.register("linear")
class LinearGuidance(GuidanceRule):
    """See `GuidanceRule`."""

    def combine(self, conditional: Affine, unconditional: Affine, weight: Tensor) -> Affine:
        return Affine(
            *(
                with_label + weight * (with_label - without)
                for with_label, without in zip(conditional, unconditional, strict=True)
            )
        )
