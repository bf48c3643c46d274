"""Guidance rules by name: guided affine parameters from conditional and unconditional ones."""

from simflow_plugin.flow.guidance.rule import (
    GuidanceContext,
    GuidanceOptions,
    GuidanceRule,
    GuidanceWeights,
    build_guidance,
)

__all__ = ["GuidanceContext", "GuidanceOptions", "GuidanceRule", "GuidanceWeights", "build_guidance"]
