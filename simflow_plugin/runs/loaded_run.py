"""A trained run, ready to sample and to measure, from its directory alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from simflow_plugin.config.loading import read_run_config
from simflow_plugin.config.schema import RunConfig
from simflow_plugin.contracts import Autoencoder, GenerativeModel, ModelContext, Posterior
from simflow_plugin.errors import CheckpointError, ConfigError, EvaluationError
from simflow_plugin.local_paths import absolute
from simflow_plugin.options import did_you_mean
from simflow_plugin.randomness import IndexedRandom
from simflow_plugin.runs.checkpoints import (
    Checkpoint,
    checkpoint_folders,
    latest_checkpoint,
    read_checkpoint,
    verify_checkpoint,
)
from simflow_plugin.runs.module_state import restore_module
from simflow_plugin.runs.parts import (
    alignment_context,
    architecture_only,
    build_autoencoder,
    build_model,
    check_guidance,
)
from simflow_plugin.runs.power_averages import average_of_length
from simflow_plugin.runs.run_directory import RunDirectory
from simflow_plugin.runs.run_precision import Precision

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class LoadedRun:
    """A run with its weights in eval mode, frozen.

    Args:
        checkpoint: the weights' origin.
        autoencoder: with averaged weights, unless loaded with `averaged=False`.
        model: likewise; None where the run trained an autoencoder alone.
        averaged: whether these are the EMA weights.
        precision: to sample and measure in; the run's own, unless another was named.
        ema_length: relative length of the average that was chosen; None: the run's own.
    """

    directory: RunDirectory
    config: RunConfig
    checkpoint: Checkpoint
    autoencoder: Autoencoder
    model: GenerativeModel | None
    averaged: bool
    precision: Precision
    ema_length: float | None = None

    def require_model(self) -> GenerativeModel:
        """Return the model.

        Raises:
            EvaluationError: if the run trained an autoencoder alone.
        """
        if self.model is None:
            raise EvaluationError(
                f"{self.directory.path}: trained an autoencoder alone (model: null); it cannot sample."
            )
        return self.model

    @property
    def device(self) -> torch.device:
        return next(self.autoencoder.parameters()).device

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the data set that the run was trained on, or None."""
        return self.checkpoint.state["num_classes"]

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes, where the data set has any; a run of an earlier version did not keep them."""
        return self.checkpoint.state.get("class_names")

    @property
    def known_class_names(self) -> list[str] | None:
        """Names of the K classes, or their numbers where there are no names; None for a run without classes."""
        count = self.num_classes
        return None if count is None else self.class_names or [str(number) for number in range(count)]

    @property
    def weights_name(self) -> str:
        return "averaged (EMA)" if self.averaged else "last training"

    @torch.no_grad()
    def encode(
        self, images: Tensor, random: IndexedRandom | None = None, purpose: str = "posterior"
    ) -> tuple[Tensor, Posterior]:
        """Return latents (B, C, h, w), normalised, float32, on the CPU, and the posterior that they are of.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            random: of a sample of the posterior, row by row; None gives its mean.
            purpose: of the draws.
        """
        with self.precision.active():
            posterior = self.autoencoder.encode(images.to(self.device))
            if random is None:
                latents = posterior.mode()
            else:
                noise = random.normal(purpose, posterior.mean.shape, self.device)
                latents = posterior.sample(noise=noise)
        return latents.float().cpu(), posterior

    def known_labels(self, labels: Tensor) -> Tensor | None:
        """Return labels (B,) on the run's device, or None for a run without classes."""
        return labels.to(self.device) if self.num_classes is not None else None

    def class_numbers(self, wanted: str | None, option: str = "--classes") -> list[int]:
        """Return the numbers of classes by name or number; of all for None, and none for a run without classes.

        Args:
            wanted: separated by commas; a class whose own name has one is named by its number.
        Raises:
            ConfigError: if there is no such class.
        """
        count = self.num_classes or 0
        if wanted is None:
            return list(range(count))
        names = self.known_class_names or []
        if not count:
            raise ConfigError(f"{option} {wanted}: the run was trained without classes. Remove the option.")
        found = []
        for text in (part.strip() for part in wanted.split(",")):
            if text in names:
                found.append(names.index(text))
            elif text.isdecimal() and int(text) < count:
                found.append(int(text))
            else:
                raise ConfigError(f"{option} {wanted}: no class `{text}`.{did_you_mean(text, names)}")
        return found

    def checked_guidance(self, guidance: float | None, option: str = "--guidance") -> float:
        """Return the guidance weight to sample with.

        Args:
            guidance: weight w >= 0; None is the run's own.
        Raises:
            EvaluationError: if the run trained an autoencoder alone.
            ConfigError: if the model has no unconditional half to guide with.
        """
        weight = self.config.sampling.guidance if guidance is None else guidance
        check_guidance(weight, self.require_model(), self.num_classes, option)
        return weight

    def with_data_root(self, root: Path | None) -> LoadedRun:
        """Return the run with its images in another folder; None leaves it as it is.

        Raises:
            ConfigError: if its data set is no folder.
        """
        if root is None:
            return self
        data = self.config.data
        if "root" not in data.options:
            raise ConfigError(
                f"--data-root {root}: data set `{data.name}` of the run has no `root`. Remove the option."
            )
        moved = data.model_copy(update={"options": {**data.options, "root": absolute(str(root))}})
        return replace(self, config=self.config.model_copy(update={"data": moved}))

    def with_model_options(self, options: dict[str, Any]) -> LoadedRun:
        """Return the run with other options of its model and the same weights, which both runs then share.

        Args:
            options: all of the model's, validated.
        """
        model, part = self.require_model(), self.config.model
        assert part is not None
        config = self.config.model_copy(update={"model": part.model_copy(update={"options": options})})
        with torch.random.fork_rng(devices=[]):
            rebuilt = _build_model(config, self.autoencoder, self.checkpoint)
        assert rebuilt is not None
        rebuilt.load_state_dict(model.state_dict(), assign=True)
        return replace(self, model=_frozen(rebuilt, self.device), config=config)


def load_run(
    path: Path | str,
    device: torch.device | str | None = None,
    averaged: bool = True,
    step: int | None = None,
    precision: str | None = None,
    ema_length: float | None = None,
) -> LoadedRun:
    """Load a checkpoint of a run directory; the other arguments are those of `simflow_plugin.load`.

    Raises:
        EvaluationError: if `ema_length` is given and there is no such average.
        ConfigError: if it is no run directory, or the device does not compute in that precision.
        CheckpointError: if it has no intact checkpoint, or not that of `step`.
    """
    directory = RunDirectory(path)
    config = read_run_config(directory.config_file)
    checkpoint = find_checkpoint(directory, step)
    if ema_length is not None and not averaged:
        raise EvaluationError(
            f"--ema-length {ema_length}: the last weights were asked for, which are no average."
        )
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    chosen = Precision.outside_training(config.training, device.type, precision)
    with torch.random.fork_rng(devices=[]):
        autoencoder = build_autoencoder(architecture_only(config, checkpoint.state))
        model = _build_model(config, autoencoder, checkpoint)
    weights = checkpoint.tensors("joint")
    if averaged:
        weights |= (
            checkpoint.tensors("ema")
            if ema_length is None
            else average_of_length(directory, config.training.ema, checkpoint, ema_length)
        )
    for prefix, module in (("autoencoder.", autoencoder), ("model.", model)):
        if module is not None:
            own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
            restore_module(module, own, checkpoint.path)
            _frozen(module, device)
    return LoadedRun(directory, config, checkpoint, autoencoder, model, averaged, chosen, ema_length)


def _build_model(
    config: RunConfig, autoencoder: Autoencoder, checkpoint: Checkpoint
) -> GenerativeModel | None:
    shape, state = autoencoder.latent_shape(config.image_size), checkpoint.state
    alignment = alignment_context(config.alignment, state["feature_dim"])
    context = ModelContext(shape, state["num_classes"], alignment, is_restored=True)
    return build_model(config.model, context, config.sampling)


def _frozen(module: M, device: torch.device) -> M:
    return module.to(device).eval().requires_grad_(False)


def find_checkpoint(directory: RunDirectory, step: int | None) -> Checkpoint:
    """Return the checkpoint of `step`, or the newest intact one.

    Raises:
        CheckpointError: if there is none.
    """
    folders = {
        int(path.name.removeprefix("step_")): path for path in checkpoint_folders(directory.checkpoints)
    }
    if not folders:
        raise CheckpointError(
            f"{directory.path}: has no checkpoint yet. Train it: simflow train {directory.config_file}"
        )
    if step is None:
        checkpoint = latest_checkpoint(directory.checkpoints)
        assert checkpoint is not None
    elif step not in folders:
        raise CheckpointError(
            f"{directory.path}: has no checkpoint of step {step}. There are: {', '.join(map(str, folders))}. More are "
            "kept with training.keep_checkpoints and training.keep_every."
        )
    elif (problem := verify_checkpoint(folders[step])) is not None:
        raise CheckpointError(f"{folders[step]}: {problem}. Name another step.")
    else:
        checkpoint = read_checkpoint(folders[step])
    checkpoint.require("num_classes", "feature_dim")
    directory.check_own(checkpoint)
    return checkpoint
