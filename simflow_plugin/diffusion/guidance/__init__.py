"""Guidance rules of diffusion models by name: how conditional and unconditional predictions become a guided one."""

from typing import TYPE_CHECKING

from simflow_plugin.diffusion.guidance.options import GuidanceOptions
from simflow_plugin.lazy import lazy_attributes

if TYPE_CHECKING:
    from simflow_plugin.diffusion.guidance.rule import GuidanceRule, GuidedPrediction

__all__ = ["GuidanceOptions", "GuidanceRule", "GuidedPrediction"]

__getattr__ = lazy_attributes(
    __name__, dict.fromkeys(("GuidanceRule", "GuidedPrediction"), "simflow_plugin.diffusion.guidance.rule")
)
