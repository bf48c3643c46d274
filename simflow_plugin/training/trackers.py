"""Destinations of a run's scalars: metrics.jsonl always, Weights & Biases if asked for (offline by default)."""

from __future__ import annotations

import json
import os
from typing import Any

from simflow_plugin.config.schema import RunConfig
from simflow_plugin.errors import ConfigError
from simflow_plugin.runs.run_directory import RunDirectory


class Tracker:
    """Appends rows of scalars; one line of JSON a row, flushed, so that a killed run keeps what it logged."""

    def __init__(self, run: RunDirectory, config: RunConfig) -> None:
        self._run = run
        self._file = run.metrics_file.open("a", encoding="utf-8")
        self._wandb = _start_wandb(run, config) if config.tracker == "wandb" else None

    def log(self, row: dict[str, Any]) -> None:
        """Write one row; `row["step"]` counts optimizer steps done.

        Raises:
            RunDirectoryError: if another process may be writing the run.
        """
        self._run.check_lock()
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()
        if self._wandb is not None:
            self._wandb.log(row, step=row["step"])

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        if self._wandb is not None:
            self._wandb.finish()


def _start_wandb(run: RunDirectory, config: RunConfig) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ConfigError("tracker: wandb needs the package: pip install 'simflow-plugin[wandb]'.") from error
    os.environ.setdefault("WANDB_MODE", "offline")
    return wandb.init(project="simflow-plugin", name=config.name, dir=run.path, config=config.model_dump())
