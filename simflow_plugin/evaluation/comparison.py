"""Runs side by side: what was measured of each, whether that may stand in one table, what each costs."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from simflow_plugin.config.schema import RunConfig
from simflow_plugin.contracts import NO_LABEL
from simflow_plugin.errors import EvaluationError
from simflow_plugin.evaluation.drawing import draw_images, to_uint8
from simflow_plugin.evaluation.flops import ComputeCost, ComputeSetting, measure_compute, without_data
from simflow_plugin.evaluation.intervals import repeated
from simflow_plugin.evaluation.measured import Measured
from simflow_plugin.evaluation.result import Evaluation, read_evaluation
from simflow_plugin.runs.loaded_run import LoadedRun, load_run
from simflow_plugin.runs.parts import objective_weights
from simflow_plugin.runs.run_directory import RunDirectory, differing_keys

log = logging.getLogger(__name__)

SUMMARY_KEYS = {
    "class_agreement": "class_agreement",
    "diversity_ratio": "diversity_ratio",
    "psnr": "psnr",
    "bits_per_dim": "latent_bits_per_dim",
}
"""Keys of summary.json, and the metrics that they are."""
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
"""How metrics begin that another seed of the samples does not change."""
WARM_UP = 2


@dataclass
class ComparedRun:
    """One run of a comparison.

    Args:
        name: unique among the runs.
        loaded: with its weights.
        metrics: by name, over seeds where several were evaluated.
        evaluations: all of the run's, for curves.
        setting: guidance and sampler of `metrics`.
        rows: of metrics.jsonl.
        cost: parameters and FLOPs; None where they cannot be counted.
        samples: uint8 (N, H, W, 3) by index, or None for an autoencoder alone.
        notes: what is missing.
    """

    name: str
    loaded: LoadedRun
    metrics: dict[str, Measured]
    evaluations: list[Evaluation]
    setting: dict[str, Any]
    rows: list[dict[str, Any]]
    cost: ComputeCost | None = None
    samples: NDArray[np.uint8] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def config(self) -> RunConfig:
        return self.loaded.config


def read_runs(paths: Sequence[Path], guidance: float | None = None) -> list[ComparedRun]:
    """Load the runs with what was measured of them.

    Args:
        paths: run directories, at least two.
        guidance: of the evaluations to use; None is each run's own.
    Raises:
        EvaluationError: for fewer than two runs, or one run twice.
        ConfigError, CheckpointError: for a directory that is no run, or has no checkpoint.
    """
    if len(paths) < 2:
        raise EvaluationError(f"compare: {len(paths)} run given, two are the least.")
    if len({path.resolve() for path in paths}) < len(paths):
        raise EvaluationError("compare: one run is given twice.")
    loaded = [load_run(path) for path in paths]
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
            {"data": r.config.data.model_dump(mode="json"), "image_size": r.config.image_size}
            for r in (first, run)
        )
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
        model = run.loaded.model
        if model is None:
            continue
        labelled = run.loaded.num_classes is not None
        feature_dim = run.loaded.checkpoint.state["feature_dim"]
        setting = ComputeSetting(
            run.config.image_size,
            labelled,
            run.setting["guidance"],
            None
            if feature_dim is None
            else (1, feature_dim),  # the loss is a mean over patches: no product of theirs
            objective_weights(run.config),
            run.config.training.cache_latents,
        )
        # A loaded run is frozen; what it trained is what its autoencoder says.
        parts = [without_data(part).requires_grad_(True) for part in (run.loaded.autoencoder, model)]
        try:
            run.cost = measure_compute(parts[0], parts[1], setting)  # type: ignore[arg-type]
        except EvaluationError as error:
            run.notes.append(f"FLOPs not counted: {error}")


def add_samples(runs: Sequence[ComparedRun], count: int, seed: int) -> None:
    """Draw samples 0 .. count - 1 of every run from the same noise index and class; time them where nobody did."""
    for run in runs:
        if run.loaded.model is None:
            continue
        run.samples, seconds = _draw(run, count, seed)
        if "sampling_seconds" not in run.metrics:
            on = f"{run.loaded.device.type}, one batch of {count}, guidance {run.setting['guidance']:g}"
            run.metrics["sampling_seconds"] = Measured(seconds, on=on)


def seconds_at(rows: Sequence[dict[str, Any]], step: int) -> float | None:
    """Return the seconds of training that a run's log gives for a step, or for the last one logged before."""
    before = [row["seconds"] for row in rows if row["step"] <= step]
    return before[-1] if before else None


def _draw(run: ComparedRun, count: int, seed: int) -> tuple[NDArray[np.uint8], float]:
    loaded, classes = run.loaded, run.loaded.num_classes
    labels = torch.tensor([index % classes if classes else NO_LABEL for index in range(count)])

    def draw(number: int) -> torch.Tensor:
        return draw_images(
            loaded.autoencoder,
            loaded.require_model(),
            range(number),
            labels[:number],
            run.setting["guidance"],
            seed,
            run.config.image_size,
        )

    draw(min(WARM_UP, count))  # first calls allocate, choose algorithms and so on
    started = time.monotonic()
    images = draw(count)
    return to_uint8(images).numpy(), (time.monotonic() - started) / count


def _read_run(loaded: LoadedRun, name: str, guidance: float | None) -> ComparedRun:
    directory = loaded.directory
    evaluations = []
    for folder in sorted((directory.path / "evaluations").glob("*/")):
        if (folder / "result.json").exists():
            evaluations.append(read_evaluation(folder))
    weight = loaded.config.sampling.guidance if guidance is None else guidance
    own = loaded.config.model.options.get("sampling", {}) if loaded.config.model is not None else {}
    chosen = [
        evaluation
        for evaluation in evaluations
        if evaluation.settings["step"] == loaded.checkpoint.step
        and evaluation.settings["weights"] == "EMA"
        and evaluation.settings["guidance"] == weight
        and evaluation.settings["sampling"] == own
    ]
    run = ComparedRun(
        name,
        loaded,
        _merge(chosen),
        evaluations,
        {"guidance": weight, "sampling": own},
        directory.read_metrics(),
    )
    if not chosen:
        run.metrics = _from_summary(directory, weight)
        run.notes.append(
            "not evaluated at this step and guidance; numbers of summary.json, without intervals"
        )
    return run


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


def _from_summary(directory: RunDirectory, guidance: float) -> dict[str, Measured]:
    if not directory.summary_file.exists():
        return {}
    try:
        summary = json.loads(directory.summary_file.read_text())
    except ValueError as error:
        raise EvaluationError(
            f"{directory.summary_file}: not JSON ({error}). Evaluate the run again."
        ) from error
    if summary.get("guidance", guidance) != guidance:
        return {}
    samples, held_out = summary.get("num_samples", 0), summary.get("num_held_out", 0)
    on = {"class_agreement": f"{samples:,} samples", "diversity_ratio": f"{samples:,} samples"}
    default = f"{held_out:,} held-out images"
    on["bits_per_dim"] = f"{default}, density of the {summary.get('bits_per_dim_of', 'latent')}"
    return {
        name: Measured(
            summary[key],
            on=f"summary of training, {on.get(key, default)}",
            draws_error=summary.get(f"{key}_error"),
        )
        for key, name in SUMMARY_KEYS.items()
        if key in summary
    }


def _names(loaded: Sequence[LoadedRun]) -> list[str]:
    """Return the configurations' names, or else folders', or else paths: the first that tell all runs apart."""
    choices = (
        [run.config.name for run in loaded],
        [run.directory.path.resolve().name for run in loaded],
        [str(run.directory.path) for run in loaded],
    )
    return next((names for names in choices if len(set(names)) == len(names)), choices[-1])
