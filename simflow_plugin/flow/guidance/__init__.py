"""Guidance rules by name: how conditional and unconditional affine parameters become guided ones."""

from simflow_plugin.flow.guidance.rule import (
    GuidanceContext,
    GuidanceOptions,
    GuidanceRule,
    GuidanceWeights,
    build_guidance,
)

__all__ = ["GuidanceContext", "GuidanceOptions", "GuidanceRule", "GuidanceWeights", "build_guidance"]
