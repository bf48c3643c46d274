"""Options of the teacher: weights of a flow, and what builds it, filled in when a configuration is resolved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from simflow_plugin.errors import ConfigError
from simflow_plugin.files import file_digest
from simflow_plugin.flow.architecture import FlowArchitecture, FlowConfig
from simflow_plugin.options import Options
from simflow_plugin.registry import MODELS, Part


class TeacherOptions(Options):
    """Weights of a flow, and what builds it."""

    weights: str = Field(
        description="file with the weights, such as the flow.safetensors of `simflow convert`."
    )
    model: Annotated[Part, MODELS] | None = Field(
        None,
        description="what builds the teacher; null: a `flow.json` beside the weights is read. Filled in.",
    )
    sha256: str | None = Field(None, description="of the weights. Filled in.")
    source: str = Field("", description="where the weights come from, for people.")

    def resolved(self) -> TeacherOptions:
        """Return the options with model, checksum and absolute path filled in.

        Raises:
            ConfigError: if the weights are not there, or nothing names what builds the teacher.
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
