"""The built-in posterior heads by name: options and facts."""

from __future__ import annotations

from simflow_plugin.posteriors.options import (
    FixedLayerNormFacts,
    FixedVarianceFacts,
    LearnedVarianceFacts,
    NoisyVarianceFacts,
)
from simflow_plugin.registry import POSTERIORS

POSTERIORS.declare("fixed", "simflow_plugin.posteriors.fixed", FixedVarianceFacts)
POSTERIORS.declare("fixed_layernorm", "simflow_plugin.posteriors.fixed", FixedLayerNormFacts)
POSTERIORS.declare("learnable", "simflow_plugin.posteriors.learnable", LearnedVarianceFacts)
POSTERIORS.declare("learnable_noise", "simflow_plugin.posteriors.learnable", NoisyVarianceFacts)
