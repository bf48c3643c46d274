"""The built-in generative models by name: options and facts, without their networks."""

from __future__ import annotations

from simflow_plugin.models.diffusion_options import DiTFacts, SiTFacts
from simflow_plugin.models.flow_options import SimFlowFacts, StarFlowFacts
from simflow_plugin.models.learned_inverse_options import LearnedInverseFacts
from simflow_plugin.registry import MODELS

MODELS.declare("simflow", "simflow_plugin.models.simflow", SimFlowFacts)
MODELS.declare("starflow", "simflow_plugin.models.starflow", StarFlowFacts)
MODELS.declare("sit", "simflow_plugin.models.sit", SiTFacts)
MODELS.declare("dit", "simflow_plugin.models.dit", DiTFacts)
MODELS.declare("learned_inverse", "simflow_plugin.models.learned_inverse", LearnedInverseFacts)
