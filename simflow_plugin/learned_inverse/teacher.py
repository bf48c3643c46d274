"""The frozen flow whose inverse is learned: built from its configuration, known by the content of its weights.

The weights are a file: `simflow distill` copies those of a run, `simflow convert` writes those of other codebases.
Resolving the configuration notes the file's SHA-256, and building the teacher refuses a file that has changed. A
checkpoint of the student holds the teacher's weights too, so that its run directory needs nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simflow_plugin.contracts import GenerativeModel, ModelContext
from simflow_plugin.errors import ConfigError, WeightsError
from simflow_plugin.files import file_digest
from simflow_plugin.learned_inverse.teacher_options import TeacherOptions
from simflow_plugin.registry import MODELS
from simflow_plugin.weights import load_strictly, read_tensors

REMEDY = "Put the weights of then back, or start a new run."


def build_teacher(options: TeacherOptions, context: ModelContext) -> Any:
    """Build the teacher of resolved options, frozen and in evaluation mode.

    Its weights are loaded unless a checkpoint of the student brings them (`context.is_restored`).

    Raises:
        ConfigError: if the model has no flow.
        WeightsError: if its weights are missing, have changed, or are of other latents or classes.
    """
    assert options.model is not None
    model: GenerativeModel = options.model.build(
        MODELS, ModelContext(context.latent_shape, context.num_classes)
    )
    if model.token_flow() is None:
        raise ConfigError(
            f"model.teacher: `{options.model.name}` has no flow to invert; name a flow (simflow, starflow)."
        )
    if not context.is_restored:
        _load_weights(model, options, context)
    return model.requires_grad_(False).eval()


def _load_weights(model: GenerativeModel, options: TeacherOptions, context: ModelContext) -> None:
    path = Path(options.weights)
    if not path.is_file():
        raise WeightsError(
            f"model.teacher: {path}: no such file. Put it back, or name its place: --set model.teacher.weights=FILE."
        )
    if file_digest(path) != options.sha256:
        raise WeightsError(
            f"model.teacher: {path}: its SHA-256 is not {str(options.sha256)[:12]}..., which this run learns the "
            f"inverse of: the teacher has changed. {REMEDY}"
        )
    tensors = read_tensors(path)
    if not any(name.startswith("flow.") for name in tensors):  # converted weights are those of the flow alone
        tensors = {f"flow.{name}": tensor for name, tensor in tensors.items()}
    shape, classes = tuple(context.latent_shape), context.num_classes
    remedy = (
        f"This run has latents {shape} of {'no' if classes is None else classes} classes; use the teacher's data, "
        "image_size and autoencoder (`simflow distill` does)."
    )
    load_strictly(model, tensors, f"model.teacher: {path}", remedy)
