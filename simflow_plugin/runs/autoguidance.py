"""Autoguidance: a weaker checkpoint of a run, or a smaller run, in place of the unconditional half of guidance.

Both see the same noise, and latents that the guide was trained on: those of one run's checkpoints, or of runs on one
frozen autoencoder. Reference: Karras et al., arXiv:2406.02507.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from simflow_plugin.contracts import GuidedByWeaker
from simflow_plugin.errors import EvaluationError
from simflow_plugin.runs.loaded_run import LoadedRun, find_checkpoint, load_run
from simflow_plugin.runs.run_directory import RunDirectory


def parse_guide(text: str) -> tuple[Path, int | None]:
    """Return the run directory and the step, or None for its newest checkpoint, of `RUN[@step]`."""
    path, separator, step = text.rpartition("@")
    if separator and step.isdigit():
        return Path(path), int(step)
    return Path(text), None


def guide_name(text: str) -> str:
    """Return `RUN@step` with the step that `RUN[@step]` stands for now.

    Raises:
        ConfigError, CheckpointError: if there is no such run or checkpoint.
    """
    path, step = parse_guide(text)
    return f"{path}@{find_checkpoint(RunDirectory(path), step).step}"


def with_autoguidance(loaded: LoadedRun, text: str | None) -> LoadedRun:
    """Return the run with its model guided by that of `RUN[@step]`, or as it is for None.

    Raises:
        EvaluationError: if the model cannot be guided so, or its latents are of another shape.
        ConfigError, CheckpointError: if there is no such run or checkpoint, or its flow does not fit.
    """
    if text is None:
        return loaded
    model = loaded.require_model()
    if not isinstance(model, GuidedByWeaker):
        raise EvaluationError(
            f"--autoguidance {text}: {type(model).__name__} cannot be guided by another model; flows can. Leave it out."
        )
    path, step = parse_guide(text)
    guide = load_run(path, loaded.device, loaded.averaged, step, loaded.precision.name)
    size = loaded.config.image_size
    shapes = [run.autoencoder.latent_shape(run.config.image_size) for run in (guide, loaded)]
    if shapes[0] != shapes[1]:
        raise EvaluationError(
            f"--autoguidance {text}: its latents are {shapes[0]}, those of {loaded.directory.path} {shapes[1]} "
            f"(images of {size} pixels). Name a checkpoint of the same run, or a run on the same autoencoder."
        )
    return replace(loaded, model=model.guided_by(guide.require_model()))
