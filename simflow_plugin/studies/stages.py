"""Stages of a study: resolve a configuration, train a run unless it is done, measure it, pretrain the judge."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer

from simflow_plugin.alignment.classifier import ClassifierEncoder, load_classifier, save_classifier
from simflow_plugin.alignment.pretraining import PretrainingOptions, pretrain_classifier
from simflow_plugin.config.loading import load_config
from simflow_plugin.config.schema import RunConfig
from simflow_plugin.contracts import DataContext
from simflow_plugin.data.loader import evaluation_batches
from simflow_plugin.data.order import sample_rows
from simflow_plugin.errors import ConfigError
from simflow_plugin.evaluation.drawing import to_uint8
from simflow_plugin.evaluation.evaluator import RunEvaluator
from simflow_plugin.evaluation.extractors import build_extractor
from simflow_plugin.evaluation.fidelity import extract, frechet
from simflow_plugin.evaluation.flops import ComputeSetting, measure_run, training_flops
from simflow_plugin.evaluation.request import EvaluationRequest
from simflow_plugin.progress_bar import count_progress
from simflow_plugin.registry import Part
from simflow_plugin.runs.checkpoints import latest_checkpoint
from simflow_plugin.runs.loaded_run import load_run
from simflow_plugin.runs.parts import build_autoencoder, build_dataset
from simflow_plugin.runs.run_directory import RunDirectory


@dataclass(frozen=True)
class StudySettings:
    """Paths, budget and sizes of a study.

    Args:
        encoder: the classifier that gives features, judges, and is the target of alignment.
        budget: factor on the steps (and warm-up, and the adversary's start) of every run alike.
        num_samples: drawn of each variant, for each guidance.
        num_held_out: images for reconstruction and likelihood.
        overrides: `key.sub=value`, set in every run alike, such as `data.root=FOLDER`.
        seed: of every run; None for the configurations' own.
        extractor: of the features of the distances; `pretrained` is the judge itself.
    Raises:
        ConfigError: for a budget that is not positive.
    """

    out: Path
    encoder: Path
    budget: float = 1.0
    num_samples: int = 2000
    num_held_out: int = 1000
    overrides: tuple[str, ...] = ()
    seed: int | None = None
    extractor: str = "pretrained"

    @property
    def weights(self) -> Path | None:
        """The file of the extractor's weights; None for the local caches and packages."""
        return self.encoder if self.extractor == "pretrained" else None

    def __post_init__(self) -> None:
        if not 0 < self.budget < float("inf"):
            raise ConfigError(f"--budget {self.budget}: expected a positive number; 1 is the full study.")

    def what_decides(self) -> dict[str, Any]:
        """Return what may not change while a study goes on."""
        facts: dict[str, Any] = {
            "budget": self.budget,
            "num_samples": self.num_samples,
            "num_held_out": self.num_held_out,
            "encoder": str(self.encoder),
        }
        # What is as usual stays unsaid, so that a study of an earlier version goes on.
        facts |= {"overrides": list(self.overrides)} if self.overrides else {}
        facts |= {"seed": self.seed} if self.seed is not None else {}
        return facts | ({"extractor": self.extractor} if self.extractor != "pretrained" else {})


def study_config(name: str, settings: StudySettings, overrides: list[str]) -> RunConfig:
    """Return the configuration `name` at the study's budget and with the study's paths.

    Args:
        name: of a shipped configuration.
        overrides: `key.sub=value`, before the budget.
    """
    shared = [*settings.overrides, *([] if settings.seed is None else [f"seed={settings.seed}"])]
    overrides = [*shared, *overrides]
    config = load_config(name, overrides)
    scaled: dict[str, object] = {
        "training.steps": max(1, round(config.training.steps * settings.budget)),
        "training.sample_every": max(1, round(config.training.sample_every * settings.budget)),
        "optimizer.warmup_steps": round(config.optimizer.warmup_steps * settings.budget),
    }
    adversarial = config.objective.adversarial
    if adversarial is not None:
        scaled["objective.adversarial.start_step"] = round(adversarial.start_step * settings.budget)
    encoder = json.dumps(str(settings.encoder))  # a JSON string is a YAML string, whatever is in it
    if config.evaluation.judge is not None and config.evaluation.judge.name == "encoder":
        scaled["evaluation.judge_checkpoint"] = encoder
    if config.alignment is not None and config.alignment.encoder.name == "pretrained":
        scaled["alignment.encoder.checkpoint"] = encoder
    return load_config(name, [*overrides, *(f"{key}={value}" for key, value in scaled.items())])


def is_trained(run: RunDirectory, config: RunConfig) -> bool:
    """Return whether the directory holds this run, up to its last step."""
    if not run.config_file.is_file():
        return False
    run.prepare(config, [])  # refuses the directory of another run
    checkpoint = latest_checkpoint(run.checkpoints)
    return checkpoint is not None and checkpoint.step >= config.training.steps


def measure_variant(
    run: RunDirectory, settings: StudySettings, guidance: tuple[float, ...]
) -> dict[str, Any]:
    """Measure a variant's samples at each guidance, its reconstruction and likelihood, and what it cost.

    The study's classifier judges, whatever judge the run's own configuration names for its report.

    Returns:
        `metrics` by guidance (as text): name -> number; `intervals` likewise: name -> [low, high], 95 %;
        `draws_errors`: name -> Monte-Carlo standard error; `cost`: parameters, FLOPs per image, seconds; `batch_size`.
    """
    loaded = load_run(run.path)
    trained = {"steps": loaded.checkpoint.step, "train_seconds": float(loaded.checkpoint.state["seconds"])}
    measured: dict[str, Any] = {"metrics": {}, "intervals": {}, "draws_errors": {}, "cost": {}}
    measured["batch_size"] = loaded.config.training.batch_size
    for number, weight in enumerate(guidance):
        # Likelihood does not depend on guidance; the distance to reconstructions does.
        parts = ("generation", "reconstruction", *(() if number else ("likelihood",)))
        request = EvaluationRequest(
            parts=parts,
            num_samples=settings.num_samples,
            guidance=weight,
            extractor=settings.extractor,
            weights=settings.weights,
            num_held_out=settings.num_held_out,
            judge=Part.model_validate({"name": "encoder", "checkpoint": str(settings.encoder)}),
        )
        evaluator = RunEvaluator(loaded, request)
        evaluator.make_samples()
        metrics, key = evaluator.measure().metrics, f"{weight:g}"
        measured["metrics"][key] = {name: number.value for name, number in metrics.items()}
        measured["intervals"][key] = {
            name: [number.low, number.high] for name, number in metrics.items() if number.low is not None
        }
        measured["draws_errors"][key] = {
            name: number.draws_error for name, number in metrics.items() if number.draws_error is not None
        }
        measured["cost"][key] = {**asdict(measure_run(loaded, weight)), **trained}
    return measured


def autoencoder_cost(run: RunDirectory, config: RunConfig) -> dict[str, Any]:
    """Return what training an autoencoder alone cost: FLOPs per image, steps, seconds."""
    rows = run.read_metrics()
    return {
        "training_flops": training_flops(build_autoencoder(config), None, ComputeSetting(config.image_size)),
        "steps": config.training.steps,
        "train_seconds": float(rows[-1]["seconds"]),
    }


def measure_real(config: RunConfig, settings: StudySettings) -> dict[str, float]:
    """Return what real images reach: the distance of as many training images from the test split, the judge's
    own share of right answers on the test split."""
    extractor = build_extractor(settings.extractor, settings.weights)
    test, train = build_dataset(config, "test"), build_dataset(config, "train")
    judge = ClassifierEncoder(
        ClassifierEncoder.Options(checkpoint=str(settings.encoder)), DataContext(config.image_size, "test")
    )
    features, right = {}, 0
    for name, dataset, count in (
        ("test", test, len(test)),
        ("train", train, min(settings.num_samples, len(train))),
    ):
        batches = list(
            evaluation_batches(dataset, config.sampling.batch_size, sample_rows(len(dataset), count))
        )
        with count_progress(f"real images, {name}", count) as advance:
            images = (to_uint8(batch.images).permute(0, 3, 1, 2) for batch in batches)
            features[name] = extract(extractor, images, advance).pooled
        if name == "test":
            right = sum(int((judge.logits(b.images).argmax(1) == b.labels).sum()) for b in batches)
    return {
        f"fd_{extractor.suffix}": frechet(features["train"], features["test"]),
        "class_agreement": right / max(1, len(test)),
    }


def ensure_encoder(path: Path, config: RunConfig, can_make: bool) -> None:
    """Check the classifier that judges, or pretrain it where its file is missing and the study knows how.

    Raises:
        WeightsError: if its file is missing, damaged, or something else.
    """
    if path.is_file() or not can_make:
        load_classifier(path)  # a wrong file is refused before anything trains
        return
    options = PretrainingOptions(config.data.name, config.image_size)
    train, test = (build_dataset(config, split) for split in ("train", "test"))
    network, card = pretrain_classifier(options, train, test)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_classifier(path, network, card)
    typer.echo(
        f"{path}: test accuracy {card.test_accuracy:.2%} on {card.num_test} held-out images of {card.data}."
    )
