"""Destinations of a run's log: metrics.jsonl; Weights & Biases and TensorBoard, by accelerate, if asked for.

A resumed run continues its page: wandb knows it by the id in run.json, TensorBoard drops what a crash left behind the
checkpoint. The horizontal axis is the number of optimizer steps.
"""

from __future__ import annotations

import json
import math
import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import yaml
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker
from PIL import Image

from simflow_plugin.config.schema import RunConfig, TrackerOptions
from simflow_plugin.errors import ConfigError
from simflow_plugin.runs.run_directory import RunDirectory

PROJECT = "simflow-plugin"
WANDB_ADDRESS = "https://api.wandb.ai"
FOLDER = "tensorboard"
FINAL = "final"
"""Prefix of the metrics of a finished run, and the picture of its reconstructions."""


class Pages:
    """The trackers of a configuration, started; `step` counts the optimizer steps done before.

    Raises:
        ConfigError: if a tracker's package is missing.
    """

    def __init__(self, run: RunDirectory, config: RunConfig, step: int) -> None:
        self._trackers: list[GeneralTracker] = []
        for options in config.tracker:
            start = {"wandb": _start_wandb, "tensorboard": _start_tensorboard}[options.name]
            try:
                self._trackers.append(start(run, config, options, step))
            except ImportError as error:
                raise ConfigError(
                    f"tracker: {options.name} needs the package: pip install 'simflow-plugin[{options.name}]'."
                ) from error

    def log_numbers(self, values: Mapping[str, Any], step: int) -> None:
        """Send what is a finite number in `values`."""
        for tracker in self._trackers:
            # wandb refuses steps that it has: those that are run again after a crash, with the same numbers.
            tracker.log(_finite_numbers(values), step=step)

    def log_picture(self, name: str, path: Path, step: int) -> None:
        """Send a PNG file."""
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))[None]
        for tracker in self._trackers:
            if isinstance(tracker, WandBTracker):
                import wandb

                tracker.log({name: [wandb.Image(pixels[0])]}, step=step)
            else:
                tracker.log_images({name: pixels}, step=step, dataformats="NHWC")

    def log_final(self, numbers: Mapping[str, Any], step: int) -> None:
        """Send the metrics of the finished run: to wandb as its summary, to TensorBoard as points."""
        final = {f"{FINAL}/{key}": value for key, value in _finite_numbers(numbers).items()}
        for tracker in self._trackers:
            if isinstance(tracker, WandBTracker):
                tracker.tracker.summary.update(final)
            else:
                tracker.log(final, step=step)

    def close(self) -> None:
        """Flush and close."""
        for tracker in self._trackers:
            tracker.finish()


class Tracker(Pages):
    """The log of a training: metrics.jsonl, one line of JSON a row, flushed, and the pages of the configuration."""

    def __init__(self, run: RunDirectory, config: RunConfig, step: int = 0) -> None:
        super().__init__(run, config, step)
        self._run = run
        self._file = run.metrics_file.open("a", encoding="utf-8")

    def log(self, row: dict[str, Any]) -> None:
        """Write one row; `row["step"]` counts optimizer steps done.

        Raises:
            RunDirectoryError: if another process may be writing the run.
        """
        self._run.check_lock()
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()
        self.log_numbers(row, row["step"])

    def close(self) -> None:
        self._file.close()
        super().close()


def log_final_metrics(run: RunDirectory, config: RunConfig) -> None:
    """Send what was measured at the end of training (summary.json) and the reconstructions to the trackers."""
    if not config.tracker:
        return
    numbers = json.loads(run.summary_file.read_text(encoding="utf-8"))
    step = int(numbers["step"])
    pages = Pages(run, config, step)
    try:
        pages.log_final(numbers, step)
        if run.reconstructions_file.is_file():
            # One step on: the last one's row is closed when wandb opens a page again.
            pages.log_picture(f"{FINAL}/reconstructions", run.reconstructions_file, step + 1)
    finally:
        pages.close()


def _finite_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    finite = {k: v for k, v in values.items() if isinstance(v, (int, float)) and math.isfinite(v)}
    return {name: value for name, value in finite.items() if name != "step"}


def wandb_mode(options: TrackerOptions) -> str | None:
    """Return `online` or `offline`; None leaves it to WANDB_MODE, where that is set."""
    if options.mode != "auto":
        return options.mode
    if os.environ.get("WANDB_MODE"):
        return None
    return "online" if is_logged_in() else "offline"


def is_logged_in() -> bool:
    """Return whether wandb would find a key without asking: in the environment, or where `wandb login` puts it."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", WANDB_ADDRESS)).hostname
    for path in (os.environ.get("NETRC"), Path.home() / ".netrc", Path.home() / "_netrc"):
        if path is None or not Path(path).is_file():
            continue
        try:
            if netrc.netrc(path).authenticators(host or "") is not None:
                return True
        except (netrc.NetrcParseError, OSError):
            continue  # wandb cannot read it either
    return False


def _start_wandb(run: RunDirectory, config: RunConfig, options: TrackerOptions, step: int) -> WandBTracker:
    import wandb  # noqa: F401  (accelerate's tracker imports it late; a missing one is named by the caller)

    tracker = WandBTracker(
        options.project or PROJECT,
        entity=options.entity,
        tags=list(options.tags) or None,
        name=config.name,
        dir=str(run.path),
        id=run.run_id,
        resume="allow",
        mode=wandb_mode(options),
    )
    tracker.start()
    tracker.store_init_configuration(yaml.safe_load(config.to_yaml(shortens_paths=True)))
    return tracker


def _start_tensorboard(
    run: RunDirectory, config: RunConfig, options: TrackerOptions, step: int
) -> TensorBoardTracker:
    # Points after the checkpoint that a run goes on from are of steps that will be run again.
    purge = {"purge_step": step + 1} if step else {}
    tracker = TensorBoardTracker(FOLDER, logging_dir=run.path, **purge)
    tracker.start()
    tracker.log({"configuration": f"```yaml\n{config.to_yaml(shortens_paths=True)}```"}, step=step)
    return tracker
