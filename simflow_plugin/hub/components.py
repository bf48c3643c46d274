"""The folders `autoencoder/` and `model/` of an export, as diffusers loads components of a pipeline.

diffusers reads in model_index.json that a component is made by a class in a file `simflow_part.py` of its folder; that
file imports one of these.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simflow_plugin.contracts import Autoencoder, GenerativeModel
from simflow_plugin.runs.exported import read_autoencoder, read_model

FILE = "simflow_part"
SOURCE = '''"""How diffusers loads this folder; needs the package: pip install simflow-plugin."""

from simflow_plugin.hub.components import {name}

__all__ = ["{name}"]
'''


class AutoencoderFolder:
    """Loader of `autoencoder/`."""

    @classmethod
    def from_pretrained(cls, folder: str | Path, **ignored: Any) -> Autoencoder:
        """Return the autoencoder, frozen, on the CPU, float32; other arguments of diffusers change nothing."""
        return read_autoencoder(Path(folder))


class ModelFolder:
    """Loader of `model/`."""

    @classmethod
    def from_pretrained(cls, folder: str | Path, **ignored: Any) -> GenerativeModel:
        """Return the generative model, frozen, on the CPU, float32; other arguments of diffusers change nothing."""
        return read_model(Path(folder))
