"""Guidance rules by name: guided affine parameters from conditional and unconditional ones.

`starflow` is STARFlow's, `linear` TarFlow's (in log sigma), `linear_sigma` iTARFlow's. SimFlow reports a "revised" rule
of its own that is in no public text, so none here has that name.
"""

from typing import TYPE_CHECKING

from simflow_plugin.flow.guidance.options import GuidanceContext, GuidanceOptions
from simflow_plugin.lazy import lazy_attributes

if TYPE_CHECKING:
    from simflow_plugin.flow.guidance.rule import GuidanceRule, GuidanceWeights, build_guidance

__all__ = ["GuidanceContext", "GuidanceOptions", "GuidanceRule", "GuidanceWeights", "build_guidance"]

__getattr__ = lazy_attributes(
    __name__,
    dict.fromkeys(("GuidanceRule", "GuidanceWeights", "build_guidance"), "simflow_plugin.flow.guidance.rule"),
)
