"""A model whose weights come from a file and are not trained: that of a run whose decoder alone goes on."""

from __future__ import annotations

from pathlib import Path

from simflow_plugin.config.schema import FrozenModel
from simflow_plugin.contracts import GenerativeModel
from simflow_plugin.errors import WeightsError
from simflow_plugin.files import file_digest
from simflow_plugin.weights import load_strictly, read_tensors


def freeze_model(model: GenerativeModel, options: FrozenModel) -> None:
    """Load the weights that the configuration names into `model`, and freeze it.

    Raises:
        WeightsError: if the file is missing, has changed since the configuration was made, or is of another model.
    """
    path = Path(options.weights)
    if not path.is_file():
        raise WeightsError(
            f"frozen_model.weights: {path}: no such file. Put it back, or say where it is: --set "
            "frozen_model.weights=FILE."
        )
    if file_digest(path) != options.sha256:
        raise WeightsError(
            f"frozen_model.weights: {path}: its SHA-256 is not {options.sha256[:12]}..., whose latents this run "
            "decodes. Put the weights of then back, or start a new run."
        )
    load_strictly(model, read_tensors(path), f"frozen_model.weights: {path}")
    model.requires_grad_(False)
