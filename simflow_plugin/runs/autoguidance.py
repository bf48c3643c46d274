"""Autoguidance: a weaker checkpoint of a run, or a smaller run, in place of the unconditional half of guidance.

Both see the same noise, and latents that the guide was trained on: those of one run's checkpoints, or of runs on one
frozen autoencoder. A configuration names the guide as `sampling.autoguidance`, a command as `--autoguidance`.
Reference: Karras et al., arXiv:2406.02507.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from simflow_plugin.config.schema import Autoguidance, RunConfig
from simflow_plugin.contracts import Autoencoder, GenerativeModel, GuidedByWeaker
from simflow_plugin.errors import CheckpointError, ConfigError, EvaluationError
from simflow_plugin.runs.checkpoints import checkpoint_folders
from simflow_plugin.runs.exported import is_exported
from simflow_plugin.runs.loaded_run import LoadedRun, find_checkpoint
from simflow_plugin.runs.parts import Parts
from simflow_plugin.runs.run_directory import RunDirectory
from simflow_plugin.runs.sources import checkpoint_digest, find_folder, open_run

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
        text: `RUN[@step]`, as the user wrote it.
    """

    folder: Path
    step: int | None
    named: str
    is_own: bool = False
    text: str = ""

    def load(self, device: torch.device | str, averaged: bool, precision: str | None) -> LoadedRun:
        """Load the guide.

        Raises:
            ConfigError, CheckpointError: naming option or key, if there is no such run or checkpoint.
        """
        with _named(self.named):
            return open_run(self.folder, device, averaged, self.step, precision)

    def digest(self) -> str:
        """Return 16 hexadecimal digits of the weights that guide now.

        Raises:
            ConfigError, CheckpointError: naming option or key, if there is no such run or checkpoint.
        """
        if is_exported(self.folder):
            return checkpoint_digest(self.folder)
        with _named(self.named):
            return checkpoint_digest(find_checkpoint(RunDirectory(self.folder), self.step).path)


@contextmanager
def _named(guide: str) -> Iterator[None]:
    """Within the block errors begin with the option or key that names the guide."""
    try:
        yield
    except (ConfigError, CheckpointError) as error:
        raise type(error)(f"{guide}: {error}") from error


def chosen_guide(config: RunConfig, own: Path, text: str | None = None) -> GuideChoice | None:
    """Return the guide that a run's samples are guided by, or None for its own unconditional half.

    Args:
        config: of the run.
        own: its directory, which `run: null` stands for.
        text: `RUN[@step]`, or `none`, in place of the configuration's; None leaves that.
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
    with _named(named):
        folder = own if guide.run is None else find_folder(guide.run)
    return GuideChoice(folder, guide.step, named, guide.run is None, str(guide))


def guide_of_option(text: str) -> Autoguidance:
    """Return the guide that `--autoguidance RUN[@step]` names.

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
        EvaluationError: if the model cannot be guided so, or its latents are others.
        ConfigError, CheckpointError: if there is no such run or checkpoint, or its model does not fit.
    """
    choice = chosen_guide(loaded.config, loaded.directory.path, text)
    if choice is None:
        return loaded
    guide = choice.load(loaded.device, loaded.averaged, loaded.precision.name)
    shape = loaded.autoencoder.latent_shape(loaded.config.image_size)
    model = guided(loaded.require_model(), shape, guide, choice)
    if not _is_relative(loaded.config, loaded.checkpoint.state.get("run_id"), guide, choice):
        check_same_latents(
            loaded.autoencoder, loaded.config.image_size, guide, choice, f"those of {loaded.directory.path}"
        )
    return replace(loaded, model=model)


def guided(
    model: GenerativeModel, latent_shape: tuple[int, int, int], guide: LoadedRun, choice: GuideChoice
) -> GenerativeModel:
    """Return a model of latents (C, h, w) guided by that of another run.

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
    with _named(choice.named):
        return model.guided_by(guide.require_model())


def _is_relative(config: RunConfig, run_id: str | None, guide: LoadedRun, choice: GuideChoice) -> bool:
    """Return whether a guide is a checkpoint of the run itself, or of the one whose model it samples with.

    These were trained together with encoders of their own steps, as autoguidance by an earlier checkpoint is meant.
    """
    frozen = config.frozen_model.run_id if config.frozen_model is not None else None
    return choice.is_own or guide.checkpoint.state.get("run_id") in {run_id, frozen} - {None}


@torch.no_grad()
def check_same_latents(
    autoencoder: Autoencoder, image_size: int, guide: LoadedRun, choice: GuideChoice, name: str
) -> None:
    """Refuse a guide whose encoder gives an image other latents, be it of the same architecture.

    Latents of an image are compared, not tensors: the decoder may have been trained further.

    Args:
        name: of the latents of the run to guide, for the message.
    Raises:
        EvaluationError: naming both.
    """
    image = torch.rand(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    if guide.config.image_size == image_size:
        pairs = zip(_latents_of(image, autoencoder), _latents_of(image, guide.autoencoder), strict=True)
        if all(torch.allclose(found, own, rtol=1e-3, atol=1e-3 * float(own.std())) for own, found in pairs):
            return
    raise EvaluationError(
        f"{choice.named}: the encoder of {guide.directory.path} gives an image other latents than {name}, so that the "
        "guide would predict in another space. Name a checkpoint of the same run, or a run on the same frozen "
        "autoencoder."
    )


def _latents_of(image: Tensor, autoencoder: Autoencoder) -> tuple[Tensor, Tensor]:
    """Return mean and std of an image's latents, in eval mode, which is left as it was."""
    was_training = autoencoder.training
    autoencoder.eval()
    try:
        posterior = autoencoder.encode(image.to(next(autoencoder.parameters()).device))
    finally:
        autoencoder.train(was_training)
    return posterior.mean.float().cpu(), posterior.std.expand_as(posterior.mean).float().cpu()


def check_guide_before_training(config: RunConfig, own: Path, parts: Parts) -> None:
    """Refuse a guide that the run to train, in the directory `own`, could not be guided by.

    Raises:
        EvaluationError, ConfigError, CheckpointError: naming the key, and what does not fit or is missing.
    """
    guide, training, model = config.sampling.autoguidance, config.training, parts.joint.model
    if guide is None or model is None:
        return
    choice = chosen_guide(config, own)
    assert choice is not None
    if guide.run is not None:
        autoencoder, loaded = parts.joint.autoencoder, choice.load("cpu", True, "float32")
        guided(model, autoencoder.latent_shape(config.image_size), loaded, choice)
        if _is_relative(config, None, loaded, choice) or checkpoint_folders(RunDirectory(own).checkpoints):
            return  # of a run that goes on, the weights are not read yet
        check_same_latents(autoencoder, config.image_size, loaded, choice, "the run to train")
        if autoencoder.trainable == "full":
            raise ConfigError(
                f"{choice.named}: autoencoder.trainable is full, so that training makes other latents than those of "
                f"{loaded.directory.path}. Name a step of this run (@STEP), or freeze the encoder."
            )
        return
    step, every = guide.step or 0, training.checkpoint_every
    there = {int(path.name[5:]) for path in checkpoint_folders(RunDirectory(own).checkpoints)}
    if step not in there and (step % every or not max(there, default=0) < step < training.steps):
        raise ConfigError(
            f"{choice.named}: no checkpoint of step {step} is there or will be saved before the last one (steps "
            f"{training.steps}, checkpoint_every {every}). Name a multiple of training.checkpoint_every below steps."
        )
