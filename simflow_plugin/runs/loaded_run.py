"""A trained run, ready to sample and to measure, from its directory alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from simflow_plugin.config.schema import RunConfig, read_run_config
from simflow_plugin.contracts import Autoencoder, GenerativeModel
from simflow_plugin.errors import CheckpointError, EvaluationError
from simflow_plugin.runs.checkpoints import (
    Checkpoint,
    checkpoint_folders,
    latest_checkpoint,
    read_checkpoint,
    verify_checkpoint,
)
from simflow_plugin.runs.module_state import restore_module
from simflow_plugin.runs.parts import architecture_only, build_autoencoder, build_model
from simflow_plugin.runs.power_averages import average_of_length
from simflow_plugin.runs.run_directory import RunDirectory


@dataclass(frozen=True)
class LoadedRun:
    """A run with its weights in eval mode, frozen.

    Args:
        directory: of the run.
        config: resolved.
        checkpoint: the weights' origin.
        autoencoder: with averaged weights, unless loaded with `averaged=False`.
        model: likewise; None where the run trained an autoencoder alone.
        num_classes: of the data set it was trained on.
        averaged: whether these are the EMA weights.
        ema_length: relative length of the average that was chosen; None: the run's own.
    """

    directory: RunDirectory
    config: RunConfig
    checkpoint: Checkpoint
    autoencoder: Autoencoder
    model: GenerativeModel | None
    num_classes: int | None
    averaged: bool
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


def load_run(
    path: Path | str,
    device: torch.device | str | None = None,
    averaged: bool = True,
    step: int | None = None,
    ema_length: float | None = None,
) -> LoadedRun:
    """Load a checkpoint of a run.

    Args:
        path: run directory.
        device: default: CUDA if there is one, else CPU.
        averaged: the EMA weights (default) or the last training weights.
        step: of the checkpoint; default: the newest that is whole.
        ema_length: relative length of the average, of a run that keeps power-function averages; default: its first.
    Raises:
        EvaluationError: if `ema_length` is given and there is no such average.
        ConfigError: if it is no run directory.
        CheckpointError: if it has no whole checkpoint, or not that of `step`.
    """
    directory = RunDirectory(path)
    config = read_run_config(directory.config_file)
    checkpoint = _find_checkpoint(directory, step)
    if ema_length is not None and not averaged:
        raise EvaluationError(
            f"--ema-length {ema_length}: the last weights were asked for, which are no average."
        )
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    state = checkpoint.state
    config_of_weights = architecture_only(config, state)
    with torch.random.fork_rng(devices=[]):
        autoencoder = build_autoencoder(config_of_weights)
        latent_shape = autoencoder.latent_shape(config.image_size)
        model = build_model(config, latent_shape, state["num_classes"], state["feature_dim"])
    weights = checkpoint.tensors("joint")
    if averaged:
        weights |= (
            checkpoint.tensors("ema")
            if ema_length is None
            else average_of_length(directory.path, config, checkpoint, ema_length)
        )
    for prefix, module in (("autoencoder.", autoencoder), ("model.", model)):
        if module is not None:
            own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
            restore_module(module, own, checkpoint.path)
            module.to(device).eval().requires_grad_(False)
    return LoadedRun(
        directory, config, checkpoint, autoencoder, model, state["num_classes"], averaged, ema_length
    )


def _find_checkpoint(directory: RunDirectory, step: int | None) -> Checkpoint:
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
        return checkpoint
    if step not in folders:
        raise CheckpointError(
            f"{directory.path}: has no checkpoint of step {step}. There are: {', '.join(map(str, folders))}. More are "
            "kept with training.keep_checkpoints and training.keep_every."
        )
    problem = verify_checkpoint(folders[step])
    if problem is not None:
        raise CheckpointError(f"{folders[step]}: {problem}. Name another step.")
    return read_checkpoint(folders[step])
