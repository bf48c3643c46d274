"""The built-in frozen encoders by name, with their options."""

from __future__ import annotations

from simflow_plugin.alignment.options import ClassifierOptions, TimmOptions, WeightsOptions
from simflow_plugin.published_weights import MODEL_BY_PRESET
from simflow_plugin.registry import ENCODERS

ENCODERS.declare("timm", "simflow_plugin.alignment.timm_encoders", TimmOptions)
ENCODERS.declare("pretrained", "simflow_plugin.alignment.classifier", ClassifierOptions)
for _name, _model in MODEL_BY_PRESET.items():
    ENCODERS.declare(
        _name, "simflow_plugin.alignment.timm_encoders", WeightsOptions, summary=f"timm's `{_model}`."
    )
