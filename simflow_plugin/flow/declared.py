"""The built-in guidance rules of flows by name, with their options."""

from __future__ import annotations

from simflow_plugin.flow.guidance_options import GuidanceOptions, SigmaGuidanceOptions
from simflow_plugin.registry import GUIDANCE

GUIDANCE.declare("linear", "simflow_plugin.flow.guidance", GuidanceOptions)
GUIDANCE.declare("linear_sigma", "simflow_plugin.flow.guidance", SigmaGuidanceOptions)
GUIDANCE.declare("starflow", "simflow_plugin.flow.guidance", GuidanceOptions)
