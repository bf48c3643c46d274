"""Guidance rules of diffusion models by name: how conditional and unconditional predictions become a guided one."""

from simflow_plugin.diffusion.guidance.rule import GuidanceOptions, GuidanceRule, GuidedPrediction

__all__ = ["GuidanceOptions", "GuidanceRule", "GuidedPrediction"]
