"""The frozen flow whose inverse is learned: built from its configuration, known by the content of its weights.

The weights are a file: `simflow distill` copies those of a run, `simflow convert` writes those of other codebases.
Resolving the configuration notes the file's SHA-256, and building the teacher refuses a file that has changed. A
checkpoint of the student holds the teacher's weights too, so that its run directory needs nothing else.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from simflow_plugin.contracts import GenerativeModel, ModelContext
from simflow_plugin.errors import ConfigError, WeightsError
from simflow_plugin.files import file_digest
from simflow_plugin.flow import FlowArchitecture, FlowConfig
from simflow_plugin.options import Options
from simflow_plugin.registry import MODELS, Part
from simflow_plugin.weights import load_strictly, read_tensors

REMEDY = "Put the weights of then back, or start a new run."


class TeacherOptions(Options):
    """Weights of a flow, and what builds it."""

    weights: str = Field(
        description="file with the weights, such as the flow.safetensors of `simflow convert`."
    )
    model: Annotated[Part, MODELS] | None = Field(
        None,
        description="what builds the teacher; null: a `flow.json` beside the weights says it. Filled in.",
    )
    sha256: str | None = Field(None, description="of the weights. Filled in.")
    source: str = Field("", description="where the weights come from, for people.")

    def resolved(self) -> TeacherOptions:
        """Return the options with model, checksum and absolute path filled in.

        Raises:
            ConfigError: if the weights are not there, or nothing says what builds the teacher.
        """
        if self.model is not None and self.sha256 is not None:
            return self
        path = Path(self.weights).expanduser().resolve()
        if not path.is_file():
            raise ConfigError(
                f"teacher.weights: {path}: no such file. Copy a run's with `simflow distill RUN`, or another "
                "codebase's with `simflow convert`."
            )
        update = {
            "weights": str(path),
            "model": self.model or _model_beside(path),
            "sha256": self.sha256 or file_digest(path),
        }
        return self.model_copy(update=update)


def _model_beside(weights: Path) -> Part:
    """Read the configuration that `simflow convert` wrote beside the weights."""
    file = weights.with_name("flow.json")
    try:
        config = FlowConfig.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        raise ConfigError(
            f"teacher.model: not given, and {file} is no configuration of a flow ({str(error).splitlines()[0]}). Name "
            "the model of the weights."
        ) from error
    architecture = config.model_dump(mode="json", include=set(FlowArchitecture.model_fields))
    return Part.model_validate({"name": "simflow", "flow": architecture})


def build_teacher(options: TeacherOptions, context: ModelContext) -> Any:
    """Build the teacher, frozen; with its weights, unless a checkpoint brings them (`context.is_restored`).

    Args:
        options: resolved.
        context: of the student.
    Returns:
        A model with a flow, in evaluation mode.
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
            f"model.teacher: {path}: no such file. Put it back, or say where it is: --set model.teacher.weights=FILE."
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
