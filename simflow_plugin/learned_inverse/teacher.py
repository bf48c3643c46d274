"""The frozen flow whose inverse is learned: found by its path once, known by the content of its weights ever after.

A teacher is a run of this package (any model with a flow) or a folder that `simflow convert` wrote. Resolving the
configuration notes what builds it and the SHA-256 of its weights; building it refuses weights that have changed; and a
checkpoint of the student holds the teacher's weights, so that its run directory needs nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from simflow_plugin.contracts import GenerativeModel, ModelContext
from simflow_plugin.errors import ConfigError, WeightsError
from simflow_plugin.files import file_digest
from simflow_plugin.options import Options
from simflow_plugin.weights import load_strictly


class TeacherOptions(Options):
    """A teacher by `run` or by `flow`; the other keys are filled in from it."""

    run: str | None = Field(None, description="run directory of the flow.")
    flow: str | None = Field(None, description="folder that `simflow convert` wrote, in place of a run.")
    step: int | None = Field(None, gt=0, description="checkpoint of the run; null: the newest.")
    model: dict[str, Any] | None = Field(
        None, description="what builds the teacher: name and options. Filled in."
    )
    sha256: str | None = Field(None, description="of the teacher's weights. Filled in.")

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"run": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _has_one_source(self) -> TeacherOptions:
        if (self.run is None) == (self.flow is None):
            raise ValueError(
                "name the teacher by one of `run` (a run directory) and `flow` (converted weights)"
            )
        if self.step is not None and self.run is None:
            raise ValueError("step has no effect without `run`")
        return self

    @property
    def source(self) -> str:
        """The path that the user gave."""
        return self.run if self.run is not None else str(self.flow)

    def resolved(self) -> TeacherOptions:
        """Return the options with model, step, absolute path and checksum filled in.

        Raises:
            ConfigError: if there is no such run or folder, or its model has no flow.
        """
        if self.model is not None and self.sha256 is not None:
            return self
        return self._of_run() if self.run is not None else self._of_converted()

    def _of_run(self) -> TeacherOptions:
        # Imported here: options are validated where no run is read.
        from simflow_plugin.config.loading import read_run_config
        from simflow_plugin.runs.loaded_run import find_checkpoint
        from simflow_plugin.runs.run_directory import RunDirectory

        directory = RunDirectory(str(self.run))
        model = read_run_config(directory.config_file).model
        if model is None:
            raise ConfigError(
                f"teacher.run: {self.run} trained an autoencoder alone; name a run with a flow."
            )
        checkpoint = find_checkpoint(directory, self.step)
        digest = file_digest(checkpoint.path / "ema.safetensors")
        part = {"name": model.name, **model.options}
        return self.model_copy(
            update={
                "run": str(directory.path.resolve()),
                "step": checkpoint.step,
                "model": part,
                "sha256": digest,
            }
        )

    def _of_converted(self) -> TeacherOptions:
        from simflow_plugin.convert.saved import load_converted
        from simflow_plugin.flow import FlowArchitecture, TransformerFlow

        folder = Path(str(self.flow)).resolve()
        flow = load_converted(folder)
        if not isinstance(flow, TransformerFlow):
            raise ConfigError(
                f"teacher.flow: {folder} holds a {type(flow).__name__}, which has no exact inverse."
            )
        architecture = flow.config.model_dump(mode="json", include=set(FlowArchitecture.model_fields))
        digest = file_digest(folder / "flow.safetensors")
        part = {"name": "simflow", "flow": architecture}
        return self.model_copy(update={"flow": str(folder), "model": part, "sha256": digest})


def build_teacher(options: TeacherOptions, context: ModelContext) -> GenerativeModel:
    """Build the teacher, frozen; with its weights, unless the context says that a checkpoint brings them.

    Args:
        options: resolved.
        context: of the student.
    Raises:
        ConfigError: if the model has no flow, or its latents have another shape.
        WeightsError: if its weights are missing, or are not those that the configuration was resolved with.
    """
    from simflow_plugin.registry import MODELS, Part

    part = Part.model_validate(options.model)
    bare = ModelContext(context.latent_shape, context.num_classes)
    model: GenerativeModel = part.build(MODELS, bare)
    if model.token_flow() is None:
        raise ConfigError(
            f"model.teacher: `{part.name}` has no flow to invert; name a run of a flow (simflow, starflow)."
        )
    if not context.is_restored:
        _load_weights(model, options, context)
    model.requires_grad_(False)
    return model.eval()


def _load_weights(model: GenerativeModel, options: TeacherOptions, context: ModelContext) -> None:
    if options.run is not None:
        from simflow_plugin.runs.loaded_run import load_run

        loaded = load_run(options.run, "cpu", step=options.step)
        _check_content(options, loaded.checkpoint.path / "ema.safetensors")
        theirs = tuple(loaded.autoencoder.latent_shape(loaded.config.image_size))
        if theirs != tuple(context.latent_shape) or loaded.num_classes != context.num_classes:
            raise ConfigError(
                f"model.teacher: {options.run} was trained on latents {theirs} of {loaded.num_classes or 'no'} "
                f"classes, this run has {tuple(context.latent_shape)} and {context.num_classes or 'none'}. Use the "
                "teacher's data, image_size and autoencoder (`simflow distill` does)."
            )
        own = {name: value for name, value in loaded.require_model().state_dict().items() if _is_kept(name)}
        load_strictly(model, own, f"model.teacher: {options.source}")
        return
    from simflow_plugin.convert.saved import load_converted

    folder = Path(str(options.flow))
    _check_content(options, folder / "flow.safetensors")
    flow = load_converted(folder)
    state = {f"flow.{name}": value for name, value in flow.state_dict().items()}
    load_strictly(model, state, f"model.teacher: {options.source}")


def _is_kept(name: str) -> bool:
    """Return whether a weight belongs to the flow: the projector of an alignment does not."""
    return not name.startswith("alignment.")


def _check_content(options: TeacherOptions, file: Path) -> None:
    if not file.is_file():
        raise WeightsError(
            f"model.teacher: {file}: no such file. Put the teacher back, or say where it is now: "
            "--set model.teacher.run=RUN."
        )
    found = file_digest(file)
    if found != options.sha256:
        raise WeightsError(
            f"model.teacher: {file}: its SHA-256 is {found[:12]}..., this run learns the inverse of weights with "
            f"{str(options.sha256)[:12]}...: the teacher has changed. Put the old weights back, or start a new run."
        )
