"""Autoguidance: a weaker checkpoint of a run, or a smaller run, in place of the unconditional half of guidance.

Both see the same noise, and latents that the guide was trained on: those of one run's checkpoints, or of runs on one
frozen autoencoder. A configuration names the guide as `sampling.autoguidance`, a command as `--autoguidance`.
Reference: Karras et al., arXiv:2406.02507.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import ValidationError

from simflow_plugin.config.schema import Autoguidance, RunConfig
from simflow_plugin.contracts import GenerativeModel, GuidedByWeaker
from simflow_plugin.errors import CheckpointError, ConfigError, EvaluationError
from simflow_plugin.runs.exported import is_exported
from simflow_plugin.runs.loaded_run import LoadedRun, find_checkpoint
from simflow_plugin.runs.parts import Parts
from simflow_plugin.runs.run_directory import RunDirectory
from simflow_plugin.runs.sources import find_folder, open_run

NONE = "none"
"""In place of a guide: the unconditional half, whatever the configuration says."""


@dataclass(frozen=True)
class GuideChoice:
    """The guide of a run's samples.

    Args:
        folder: of the guide, a run directory or an exported run.
        step: of its checkpoint; None is the newest.
        named: as the user wrote it, with option or key, for messages.
        is_own: whether it is a checkpoint of the run that it guides.
    """

    folder: Path
    step: int | None
    named: str
    is_own: bool = False

    def load(self, device: torch.device | str, averaged: bool, precision: str | None) -> LoadedRun:
        """Load the guide.

        Raises:
            ConfigError, CheckpointError: naming option or key, if there is no such run or checkpoint.
        """
        try:
            return open_run(self.folder, device, averaged, self.step, precision)
        except (ConfigError, CheckpointError) as error:
            raise type(error)(f"{self.named}: {error}") from error

    def settings_name(self) -> str:
        """Return `RUN@step` with the step that is taken now.

        Raises:
            ConfigError, CheckpointError: if there is no such run or checkpoint.
        """
        if is_exported(self.folder):
            return f"{self.folder.resolve()}@exported"
        step = find_checkpoint(RunDirectory(self.folder), self.step).step
        return f"{'itself' if self.is_own else self.folder.resolve()}@{step}"


def chosen_guide(config: RunConfig, own: Path, text: str | None = None) -> GuideChoice | None:
    """Return the guide that a run's samples are guided by, or None for its own unconditional half.

    Args:
        config: of the run.
        own: its directory, which `run: null` stands for.
        text: `RUN[@step]`, or `none`, in place of what the configuration says; None leaves that.
    Raises:
        ConfigError: if the text names no guide, or there is no such run.
    """
    if text == NONE:
        return None
    if text is not None:
        guide, named = guide_of_option(text), f"--autoguidance {text}"
    elif config.sampling.autoguidance is not None:
        guide = config.sampling.autoguidance
        named = f"sampling.autoguidance {guide}"
    else:
        return None
    try:
        folder = own if guide.run is None else find_folder(guide.run)
    except ConfigError as error:
        raise ConfigError(f"{named}: {error}") from error
    return GuideChoice(folder, guide.step, named, guide.run is None)


def guide_of_option(text: str) -> Autoguidance:
    """Return the guide that `--autoguidance` names.

    Args:
        text: `RUN[@step]`.
    Raises:
        ConfigError: if it is neither a run nor a step of one.
    """
    try:
        return Autoguidance.model_validate(text)
    except ValidationError as error:
        problem = error.errors()[0]
        place = "".join(f"{part}: " for part in problem["loc"])
        said = problem["msg"].removeprefix("Value error, ")
        raise ConfigError(
            f"--autoguidance {text!r}: {place}{said}. Write RUN, RUN@STEP, @STEP of the run itself with STEP >= 1, or "
            f"{NONE}."
        ) from error


def with_autoguidance(loaded: LoadedRun, text: str | None = None) -> LoadedRun:
    """Return the run with its model guided as `chosen_guide` says, or as it is.

    Raises:
        EvaluationError: if the model cannot be guided so, or its latents are of another shape.
        ConfigError, CheckpointError: if there is no such run or checkpoint, or its model does not fit.
    """
    choice = chosen_guide(loaded.config, loaded.directory.path, text)
    if choice is None:
        return loaded
    guide = choice.load(loaded.device, loaded.averaged, loaded.precision.name)
    shape = loaded.autoencoder.latent_shape(loaded.config.image_size)
    return replace(loaded, model=guided(loaded.require_model(), shape, guide, choice))


def guided(
    model: GenerativeModel, latent_shape: tuple[int, int, int], guide: LoadedRun, choice: GuideChoice
) -> GenerativeModel:
    """Return a model guided by that of another run.

    Args:
        model: to guide.
        latent_shape: (C, h, w) of its latents.
        guide: the loaded guide.
        choice: where it is from.
    Raises:
        EvaluationError: if the model cannot be guided so, or its latents are of another shape.
        ConfigError: if the two do not fit.
    """
    if not isinstance(model, GuidedByWeaker):
        raise EvaluationError(
            f"{choice.named}: {type(model).__name__} cannot be guided by another model. Leave it out."
        )
    found = guide.autoencoder.latent_shape(guide.config.image_size)
    if found != latent_shape:
        raise EvaluationError(
            f"{choice.named}: its latents are {found}, expected {latent_shape}, those of the run that it guides. Name "
            "a checkpoint of the same run, or a run on the same autoencoder."
        )
    try:
        return model.guided_by(guide.require_model())
    except ConfigError as error:
        raise ConfigError(f"{choice.named}: {error}") from error


def check_guide_before_training(config: RunConfig, own: Path, parts: Parts) -> None:
    """Refuse a guide that the trained run could not be guided by.

    Args:
        config: of the run to train, resolved.
        own: its directory.
        parts: built from it.
    Raises:
        EvaluationError, ConfigError, CheckpointError: naming the key, and what does not fit or is missing.
    """
    guide, training, model = config.sampling.autoguidance, config.training, parts.joint.model
    if guide is None or model is None:
        return
    choice = chosen_guide(config, own)
    assert choice is not None
    if guide.run is not None:
        shape = parts.joint.autoencoder.latent_shape(config.image_size)
        guided(model, shape, choice.load("cpu", True, "float32"), choice)
        return
    step, every, keep_every = guide.step or 0, training.checkpoint_every, training.keep_every
    earlier = range((training.steps - 1) // every * every, 0, -every)
    is_kept = step in earlier[: training.keep_checkpoints - 1] or (keep_every and step % keep_every == 0)
    if step not in earlier or not is_kept:
        raise ConfigError(
            f"{choice.named}: no earlier checkpoint of step {step} is there when training ends (training.steps "
            f"{training.steps}, checkpoint_every {every}, keep_checkpoints {training.keep_checkpoints}, keep_every "
            f"{'null' if keep_every is None else keep_every}). Set training.keep_every, or name another step."
        )
