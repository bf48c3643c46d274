"""Trained runs by the name that users have for them: a run directory, an exported folder, a name on the Hub."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from simflow_plugin.errors import ConfigError
from simflow_plugin.runs.loaded_run import LoadedRun, load_run

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def open_run(
    name: Path | str,
    device: torch.device | str | None = None,
    averaged: bool = True,
    step: int | None = None,
    precision: str | None = None,
    ema_length: float | None = None,
) -> LoadedRun:
    """Load a trained run; see `load_run` for the arguments.

    Raises:
        ConfigError: if there is no such run.
        CheckpointError: if it has no intact checkpoint, or not that of `step`.
    """
    path = Path(name)
    if not path.is_dir():
        raise ConfigError(f"{name}: no such run directory.")
    return load_run(path, device, averaged, step, precision, ema_length)
