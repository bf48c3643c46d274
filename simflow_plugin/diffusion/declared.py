"""The built-in guidance rules of diffusion models by name, with their options."""

from __future__ import annotations

from simflow_plugin.diffusion.options import GuidanceOptions
from simflow_plugin.registry import DIFFUSION_GUIDANCE

DIFFUSION_GUIDANCE.declare("classifier_free", "simflow_plugin.diffusion.guidance", GuidanceOptions)
