"""Runs side by side: their evaluations, checks that these are comparable, and the cost of each run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simflow_plugin.errors import CheckpointError, ConfigError, EvaluationError
from simflow_plugin.evaluation.drawing import ImageSampler, class_labels, grid_indices, to_uint8
from simflow_plugin.evaluation.evaluator import evaluation_settings
from simflow_plugin.evaluation.flops import ComputeCost, measure_run
from simflow_plugin.evaluation.intervals import repeated
from simflow_plugin.evaluation.request import EvaluationRequest
from simflow_plugin.evaluation.result import Evaluation, Measured, read_evaluation
from simflow_plugin.runs.autoguidance import NONE
from simflow_plugin.runs.exported import is_exported, without_local_folders
from simflow_plugin.runs.loaded_run import LoadedRun
from simflow_plugin.runs.run_directory import differing_keys
from simflow_plugin.runs.sources import open_run

NEVER_REFUSED = frozenset({"sampling_seconds", "latent_bits_per_dim"})
"""Metrics whose conditions are shown beside them and need not agree."""
NOT_OF_SAMPLES = (
    "rfid",
    "rfd_",
    "psnr",
    "ssim",
    "lpips",
    "latent_bits",
    "image_bits",
    "auroc",
    "sampling_seconds",
)
"""Prefixes of metrics that another seed of the samples does not change."""
WARM_UP = 2
SAME = ("step", "checkpoint", "weights", "ema_length", "guidance", "autoguidance", "sampling")
"""Settings that the evaluations of a column share; their seeds may differ."""


@dataclass
class ComparedRun:
    """One run of a comparison.

    Args:
        name: unique among the runs.
        loaded: with its weights.
        metrics: by name, over seeds where several were evaluated.
        evaluations: all of the run's, for curves.
        setting: of `metrics`, as `evaluation_settings` gives it.
        rows: of metrics.jsonl.
        cost: parameters and FLOPs; None where they cannot be counted.
        indices: of the samples shown.
        samples: uint8 (N, H, W, 3), or None for an autoencoder alone.
        notes: what is missing.
    """

    name: str
    loaded: LoadedRun
    metrics: dict[str, Measured]
    evaluations: list[Evaluation]
    setting: dict[str, Any]
    rows: list[dict[str, Any]]
    cost: ComputeCost | None = None
    indices: list[int] = field(default_factory=list)
    samples: NDArray[np.uint8] | None = None
    notes: list[str] = field(default_factory=list)


def read_runs(
    paths: Sequence[Path], guidance: float | None = None, precision: str | None = None
) -> list[ComparedRun]:
    """Load the runs with what was measured of them.

    Args:
        paths: run directories or exported runs, at least two.
        guidance: of the evaluations to use; None is each run's own.
        precision: likewise, and of the samples shown.
    Raises:
        EvaluationError: for fewer than two runs, or one run twice.
        ConfigError, CheckpointError: for a directory that is no run, or has no checkpoint.
    """
    if len(paths) < 2:
        raise EvaluationError(f"compare: {len(paths)} run given, two are the least.")
    if len({path.resolve() for path in paths}) < len(paths):
        raise EvaluationError("compare: one run is given twice.")
    loaded = [open_run(path, precision=precision) for path in paths]
    return [_read_run(run, name, guidance) for run, name in zip(loaded, _names(loaded), strict=True)]


def check_comparable(runs: Sequence[ComparedRun], force: bool) -> list[str]:
    """Return what keeps the runs from being compared; refuse it unless forced.

    Raises:
        EvaluationError: if data, resolution, weights or the conditions of a metric differ, and `force` is not set.
    """
    problems = []
    first = runs[0]
    for run in runs[1:]:
        ours, theirs = (
            {"data": c.data.model_dump(mode="json"), "image_size": c.image_size}
            for c in (first.loaded.config, run.loaded.config)
        )
        if any(is_exported(r.loaded.directory.path) for r in (first, run)):
            # An exported configuration names no folder of the machine that it was trained on.
            ours, theirs = without_local_folders(ours), without_local_folders(theirs)
        for key, (was, now) in differing_keys(ours, theirs).items():
            problems.append(f"{key}: {was!r} in {first.name}, {now!r} in {run.name}")
    for key in dict.fromkeys(key for run in runs for key in run.metrics if key not in NEVER_REFUSED):
        conditions = {run.metrics[key].on: run.name for run in runs if key in run.metrics}
        if len(conditions) > 1:
            problems.append(f"{key}: " + " but ".join(f"{on!r} in {name}" for on, name in conditions.items()))
    if problems and not force:
        raise EvaluationError(
            "these runs do not belong into one table: "
            + "; ".join(problems)
            + ". Evaluate them alike (simflow evaluate), "
            "or insist with --force; the table will say what differs."
        )
    return problems


def add_costs(runs: Sequence[ComparedRun]) -> None:
    """Count parameters and FLOPs of every run."""
    for run in runs:
        if run.loaded.model is None:
            continue
        try:
            run.cost = measure_run(run.loaded, run.setting["guidance"])
        except (EvaluationError, ConfigError, CheckpointError) as error:
            run.notes.append(f"FLOPs not counted: {str(error).rstrip('.')}")


def add_samples(runs: Sequence[ComparedRun], per_class: int, seed: int) -> None:
    """Draw the first samples of the first classes from the same noise in every run; time them where nobody did."""
    for run in runs:
        loaded = run.loaded
        if loaded.model is None:
            continue
        try:
            sampler = ImageSampler.of_run(loaded, run.setting["guidance"], seed)
        except (ConfigError, CheckpointError) as error:  # of a guide that was moved; its numbers stay
            if "autoguidance" not in run.setting:
                raise
            run.notes.append(f"no samples: {str(error).rstrip('.')}")
            continue
        run.indices = grid_indices(loaded.num_classes, per_class)
        labels = class_labels(run.indices, loaded.num_classes)
        sampler.draw(run.indices[:WARM_UP], labels[:WARM_UP])  # allocates, chooses algorithms and so on
        started, count = time.monotonic(), len(run.indices)
        run.samples = to_uint8(sampler.draw(run.indices, labels)).numpy()
        if "sampling_seconds" not in run.metrics:
            on = f"{loaded.device.type}, one batch of {count}, guidance {sampler.guidance:g}"
            run.metrics["sampling_seconds"] = Measured((time.monotonic() - started) / count, on=on)


def seconds_at(rows: Sequence[dict[str, Any]], step: int) -> float | None:
    """Return the seconds of training that a run's log gives for a step, or for the last one logged before."""
    before = [row["seconds"] for row in rows if row["step"] <= step]
    return before[-1] if before else None


def _read_run(loaded: LoadedRun, name: str, guidance: float | None) -> ComparedRun:
    directory = loaded.directory
    folders = sorted((directory.path / "evaluations").glob("*/"))
    evaluations = [read_evaluation(folder) for folder in folders if (folder / "result.json").exists()]
    own, notes = _own_setting(loaded, guidance, evaluations)
    same = [e for e in evaluations if all(e.settings.get(key) == own.get(key) for key in SAME)]
    # Of a run that was evaluated on another machine the precision may be another; two are never mixed.
    precisions = [evaluation.settings.get("precision", "float32") for evaluation in same]
    if precisions and own["precision"] not in precisions:
        own["precision"] = precisions[-1]
    chosen = [e for e, found in zip(same, precisions, strict=True) if found == own["precision"]]
    notes += [] if chosen else ["not evaluated at this step and guidance: run simflow evaluate"]
    rows = directory.read_metrics()
    return ComparedRun(name, loaded, _merge(chosen), evaluations, own, rows, notes=notes)


def _own_setting(
    loaded: LoadedRun, guidance: float | None, evaluations: Sequence[Evaluation]
) -> tuple[dict[str, Any], list[str]]:
    """Return the setting of the run itself, with notes; a guide that is gone is the one that was last sampled with."""
    try:
        return evaluation_settings(loaded, EvaluationRequest(guidance=guidance)), []
    except (ConfigError, CheckpointError) as error:
        text = str(loaded.config.sampling.autoguidance)
        known = [e for e in evaluations if e.details.get("autoguidance") == text]
        if not known:
            raise
        latest = max(known, key=lambda e: (e.folder / "result.json").stat().st_mtime_ns)
        unguided = evaluation_settings(loaded, EvaluationRequest(guidance=guidance, autoguidance=NONE))
        return {**unguided, "autoguidance": latest.settings["autoguidance"]}, [str(error).rstrip(".")]


def _merge(evaluations: Sequence[Evaluation]) -> dict[str, Measured]:
    """Join evaluations that differ in the seed alone: metrics of samples get intervals over the seeds.

    Metrics of held-out images keep their own: another seed does not draw other images.
    """
    found: dict[str, Measured] = {}
    for key in dict.fromkeys(key for evaluation in evaluations for key in evaluation.metrics):
        numbers = [evaluation.metrics[key] for evaluation in evaluations if key in evaluation.metrics]
        if len(numbers) == 1 or key.startswith(NOT_OF_SAMPLES) or len({number.on for number in numbers}) > 1:
            found[key] = numbers[-1]
            continue
        warning = next((number.warning for number in numbers if number.warning), "")
        found[key] = repeated([number.value for number in numbers]).with_notes(numbers[0].on, warning)
    return found


def _names(loaded: Sequence[LoadedRun]) -> list[str]:
    """Return the configurations' names, or else folders', or else paths: the first that are unique."""
    choices = (
        [run.config.name for run in loaded],
        [run.directory.path.resolve().name for run in loaded],
        [str(run.directory.path) for run in loaded],
    )
    return next((names for names in choices if len(set(names)) == len(names)), choices[-1])
