"""The built-in guidance rules of flows by name, with their options."""

from __future__ import annotations

from simflow_plugin.flow.guidance.options import GuidanceOptions, SigmaGuidanceOptions
from simflow_plugin.registry import GUIDANCE

GUIDANCE.declare("linear", "simflow_plugin.flow.guidance.linear_rule", GuidanceOptions)
GUIDANCE.declare("linear_sigma", "simflow_plugin.flow.guidance.sigma_rule", SigmaGuidanceOptions)
GUIDANCE.declare("starflow", "simflow_plugin.flow.guidance.starflow_rule", GuidanceOptions)
