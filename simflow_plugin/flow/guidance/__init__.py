"""Guidance rules by name: guided affine parameters from conditional and unconditional ones.

`starflow` is STARFlow's, `linear` TarFlow's (in log sigma), `linear_sigma` iTARFlow's. SimFlow reports a "revised" rule
of its own that is in no public text, so none here has that name.
"""

from simflow_plugin.flow.guidance.rule import (
    GuidanceContext,
    GuidanceOptions,
    GuidanceRule,
    GuidanceWeights,
    build_guidance,
)

__all__ = ["GuidanceContext", "GuidanceOptions", "GuidanceRule", "GuidanceWeights", "build_guidance"]
