"""Conversion of other codebases' weights, key by key, with shapes checked."""

from simflow_plugin.convert.from_ml_starflow import from_ml_starflow, label_features
from simflow_plugin.convert.from_ml_tarflow import from_ml_tarflow
from simflow_plugin.convert.saved import load_converted, save_converted

__all__ = ["from_ml_starflow", "from_ml_tarflow", "label_features", "load_converted", "save_converted"]
