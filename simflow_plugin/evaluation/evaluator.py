"""The evaluation of a run: samples in shards, metrics with intervals and warnings, one result file a setting.

    RUN/evaluations/<key>/shard_*.npz  result.json  scores.csv  evaluation.html

The key stands for what decides a sample: checkpoint, weights, sampler, guidance, seed, precision. A later evaluation of
the same setting adds its numbers to the same result. The summary of training, `simflow evaluate`, comparisons and
studies all measure here, so that one setting of a run has one number.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simflow_plugin import registry
from simflow_plugin.contracts import DataContext, ImageDataset
from simflow_plugin.data.changes import data_changes
from simflow_plugin.data.disk_cache import fingerprint
from simflow_plugin.data.feature_cache import dataset_facts
from simflow_plugin.data.loader import check_corrupt, evaluation_batches
from simflow_plugin.data.summary import split_notes
from simflow_plugin.errors import EvaluationError, SimflowError
from simflow_plugin.evaluation.classification import check_classifies, classify, measure_classification
from simflow_plugin.evaluation.drawing import SEED, ImageSampler, class_labels, to_uint8
from simflow_plugin.evaluation.extractors import Extractor, ImageFeatures, build_extractor
from simflow_plugin.evaluation.fidelity import distance, fidelity, named_after
from simflow_plugin.evaluation.held_out import (
    HeldOut,
    find_lpips,
    fit_control_variate,
    fit_likelihood,
    measure_likelihood,
    measure_outliers,
    measure_reconstruction,
)
from simflow_plugin.evaluation.intervals import proportion
from simflow_plugin.evaluation.judges import Judge
from simflow_plugin.evaluation.likelihood import Scorer
from simflow_plugin.evaluation.request import (
    EvaluationRequest,
    assignment,
    checked_parts,
    has_density,
    other_data,
    with_sampling,
)
from simflow_plugin.evaluation.result import Evaluation, Measured, read_evaluation
from simflow_plugin.evaluation.sample_shards import SampleShards
from simflow_plugin.evaluation.shared_features import SharedFeatures
from simflow_plugin.progress_bar import count_progress
from simflow_plugin.registry import Part
from simflow_plugin.runs.autoguidance import GuideChoice, chosen_guide
from simflow_plugin.runs.checkpoints import checkpoint_folders
from simflow_plugin.runs.loaded_run import LoadedRun
from simflow_plugin.runs.parts import build_dataset
from simflow_plugin.runs.run_precision import Precision
from simflow_plugin.runs.sources import checkpoint_digest


class RunEvaluator:
    """Evaluates one loaded run.

    Everything that can be refused is checked here, before the first sample is drawn.

    Args:
        loaded: the run; its model is rebuilt where sampling options change.
        request: what to measure.
        needs_judge: refuse a judge that cannot be had; otherwise the result notes it.
    Raises:
        EvaluationError, WeightsError, ConfigError: for a request that cannot be met.
    """

    def __init__(self, loaded: LoadedRun, request: EvaluationRequest, needs_judge: bool = True) -> None:
        self.parts = checked_parts(loaded, request)
        if "classification" in self.parts:
            check_classifies(loaded)
        if request.sampling:
            option = f"--sampling {' '.join(request.sampling)}"
            loaded = with_sampling(loaded, dict(map(assignment, request.sampling)), option)
        self.loaded = loaded
        self.request = request
        self.config = loaded.config
        self.batch_size = request.batch_size or loaded.config.sampling.batch_size
        self.sampler: ImageSampler | None = None
        if "generation" in self.parts:
            self.sampler = ImageSampler.of_run(
                self.loaded, request.guidance, request.seed, request.autoguidance
            )
        self.extractor: Extractor | None = None
        self.sample_features: ImageFeatures | None = None  # once measured
        if request.extractor is not None and set(self.parts) & {"generation", "reconstruction"}:
            self.extractor = build_extractor(request.extractor, request.weights, loaded.device)
        settings = evaluation_settings(self.loaded, request)
        name = f"step_{settings['step']:08d}_{fingerprint(settings)}"
        self.evaluation = Evaluation(loaded.directory.path / "evaluations" / name, settings)
        if (guide := _guide(self.loaded, request)) is not None:
            self.evaluation.details["autoguidance"] = guide.text
        self.evaluation.notes_by_part = {part: [] for part in ("data", *self.parts)}
        self.lpips, note = None, ""
        if "reconstruction" in self.parts:
            self.lpips, note = find_lpips(loaded, request.lpips_backbone)
            if note:
                self.evaluation.note("reconstruction", note)
        self.shards = SampleShards(self.evaluation.folder, request.num_samples)
        self.test = build_dataset(self.config, "test")
        self._context = DataContext(self.config.image_size, "test", self.config.seed)
        self.other = other_data(request, self._context, self.batch_size)
        self.judge = self._build_judge(needs_judge)

    @property
    def is_of_the_run_itself(self) -> bool:
        """True if this measures the newest averaged weights with the run's own settings, as the end of training."""
        config, found = self.config, self.evaluation.settings
        precision = Precision.outside_training(config.training, self.loaded.device.type)
        own = {
            "weights": "EMA",
            "guidance": config.sampling.guidance,
            "sampling": sampler_options(config.model),
            "seed": SEED,
            "precision": str(precision),
        }
        folders = checkpoint_folders(self.loaded.directory.checkpoints)
        if not folders:  # an exported run; its summary and model card tell of the run that it came from
            return False
        is_own = found == found | own and self.loaded.ema_length is None
        is_own = is_own and self.request.autoguidance is None
        return is_own and self.loaded.checkpoint.path == folders[-1]

    @cached_property
    def train(self) -> ImageDataset:
        """The run's training images."""
        return build_dataset(self.config, "train")

    def make_samples(self, rank: int = 0, world_size: int = 1) -> None:
        """Draw the missing samples of this process, and extract its share of all features."""
        if self.sampler is None:
            return
        self._draw_samples(rank, world_size)
        if self.extractor is not None:
            for features in (self._sample_features_of(self.extractor), self._real_features(self.extractor)):
                features.make_missing(rank, world_size)

    def _draw_samples(self, rank: int, world_size: int) -> None:
        assert self.sampler is not None
        started, drawn = time.monotonic(), 0

        def draw(indices: Sequence[int]) -> tuple[Any, Any]:
            nonlocal drawn
            drawn += len(indices)
            return self._draw(indices)

        share = sum(self.shards.wanted(n) for n in range(rank, self.shards.num_shards, world_size))
        with count_progress("sampling", share) as advance:
            self.shards.make_missing(draw, self.batch_size, rank, world_size, advance)
        if drawn:
            seconds = (time.monotonic() - started) / drawn
            on = (
                f"{self.loaded.device.type}, batches of {self.batch_size}, guidance {self.sampler.guidance:g}"
            )
            self.evaluation.metrics["sampling_seconds"] = Measured(seconds, on=on)

    def measure(self) -> Evaluation:
        """Measure everything that was asked for, on the samples on disk; write and return the result."""
        changes = data_changes(self.loaded.checkpoint.state, self.train)
        for note in changes + split_notes(self.train, self.test):
            self.evaluation.note("data", note)
        if "generation" in self.parts:
            self._generation()
        if "reconstruction" in self.parts:
            self._reconstruction()
        if "likelihood" in self.parts:
            self._likelihood()
        if "classification" in self.parts:
            self._classification()
        self.evaluation.save()
        return read_evaluation(self.evaluation.folder)

    # ------------------------------------------------------------------ generation

    def _draw(self, indices: Sequence[int]) -> tuple[Any, Any]:
        assert self.sampler is not None
        labels = class_labels(indices, self.loaded.num_classes)
        return to_uint8(self.sampler.draw(indices, labels)).numpy(), labels.numpy()

    def _generation(self) -> None:
        count, found = self.request.num_samples, self.evaluation.metrics
        self.evaluation.details["num_samples"] = count
        samples_on = f"{count:,} samples"
        if self.extractor is not None:
            reference = self.request.reference
            self.sample_features = self._sample_features_of(self.extractor).read()
            real = self._real_features(self.extractor).read()
            num_real = len(real.pooled)  # those that could be read, by all processes together
            dataset = self.test if reference == "test" else self.train
            check_corrupt(dataset, len(dataset) - num_real)
            on = (
                f"{samples_on} against {num_real:,} images, {self._name(reference)}, {self._extractor_name()}"
            )
            warning = "compared with the training split" if reference == "train" else ""
            numbers = fidelity(self.sample_features, real, self.extractor, self.request.seed)
            found |= {name: number.with_notes(on, warning) for name, number in numbers.items()}
        if self.judge is not None:
            try:
                self._judge(self.judge, samples_on)
            except SimflowError as error:  # the other numbers, and the samples, are worth keeping
                self.evaluation.note("generation", f"not judged: {error}")

    def _sample_features_of(self, extractor: Extractor) -> SharedFeatures:
        """Return the features of the samples: a shard's in a part, so that who draws it may extract them too."""
        size, count = self.shards.shard_size, self.request.num_samples

        def images(numbers: range) -> Iterable[Tensor]:
            pixels, _ = self.shards.read_shard(numbers.start // size)
            return torch.from_numpy(pixels).permute(0, 3, 1, 2).split(self.batch_size)

        facts = {"samples": self.evaluation.folder.name, "count": count}
        return SharedFeatures(
            "samples", facts, extractor, images, count, self.evaluation.folder, part_size=size, keeps=False
        )

    def _real_features(self, extractor: Extractor) -> SharedFeatures:
        """Return the features of the reference, cached by what its images are."""
        split, data = self.request.reference, self.config.data
        dataset = self.test if split == "test" else self.train
        facts = dataset_facts(data.name, data.options, dataset, split, self.config.image_size)
        corrupt: set[int] = set()

        def images(numbers: range) -> Iterable[Tensor]:
            for batch in evaluation_batches(dataset, self.batch_size, numbers, corrupt):
                yield to_uint8(batch.images).permute(0, 3, 1, 2)

        count = len(dataset)
        return SharedFeatures("real images", {**facts, "count": count}, extractor, images, count)

    def _judge(self, judge: Judge, samples_on: str) -> None:
        images, labels = (np.concatenate(part) for part in zip(*self.shards.read(), strict=True))
        judgement = judge(torch.from_numpy(images), torch.from_numpy(labels), self.train, self.test)
        on = f"{samples_on}, judge: {judgement.judge} ({judgement.class_agreement_real:.1%} of held-out images right)"
        num_right = round(judgement.class_agreement * judgement.num_samples)
        self.evaluation.metrics |= {
            "class_agreement": proportion(num_right, judgement.num_samples).with_notes(on),
            "diversity_ratio": Measured(judgement.diversity_ratio, on=on),
        }
        self.evaluation.details["judgement"] = asdict(judgement)
        self.evaluation.details["class_names"] = self.loaded.class_names

    def _build_judge(self, is_needed: bool) -> Judge | None:
        part = self.request.judge or self.config.evaluation.judge
        if part is None or "generation" not in self.parts:
            return None
        try:
            least, count = 2 * (self.loaded.num_classes or 0), self.request.num_samples
            if count < least:
                raise EvaluationError(
                    f"--num-samples {count}: evaluation.judge: {part.name} needs two samples of each of "
                    f"{self.loaded.num_classes} classes: {least}."
                )
            return part.build(registry.JUDGES, self._context)
        except SimflowError as error:
            if is_needed:
                raise
            self.evaluation.note("generation", f"not judged: {error}")
            return None

    # ------------------------------------------------------------------ held-out images

    def _held_out(self) -> HeldOut:
        count = min(self.request.num_held_out or len(self.test), len(self.test))
        return HeldOut(self.test, self._name("test"), count, self.batch_size)

    def _reconstruction(self) -> None:
        originals: list[ImageFeatures] = []
        decoded: list[ImageFeatures] = []
        held_out, extractor, found = self._held_out(), self.extractor, self.evaluation.metrics

        def keep(images: Tensor, reconstruction: Tensor) -> None:
            if extractor is not None:
                originals.append(extractor(images))
                decoded.append(extractor(reconstruction))

        found |= measure_reconstruction(self.loaded, held_out, self.lpips, keep)
        self.evaluation.details["num_held_out"] = held_out.num_measured
        if extractor is None or held_out.num_measured < 2:
            return
        real, reconstructed = map(ImageFeatures.concatenate, (originals, decoded))
        on = f"{held_out.counted}, posterior mean, {self._extractor_name()}"
        distances = {"rfid": distance(reconstructed, real).with_notes(on)}
        if self.sample_features is not None:
            on = f"{self.request.num_samples:,} samples against reconstructions of {on}"
            number = distance(self.sample_features, reconstructed).with_notes(on)
            distances["fid_to_reconstructions"] = number
        found |= named_after(extractor, distances)

    def _likelihood(self) -> None:
        model = self.loaded.model
        if model is None or not has_density(self.loaded):
            self.evaluation.note("likelihood", "likelihood: not measured, the model has no exact density")
            return
        likelihood = fit_likelihood(self.loaded, self.train, self.request.likelihood, self.batch_size)
        scorer = Scorer(self.loaded.autoencoder, model, likelihood, self.request.posterior_samples)
        scorer = fit_control_variate(self.loaded, self.train, scorer, self.batch_size)
        folder, held_out = self.evaluation.folder, self._held_out()
        self.evaluation.metrics |= measure_likelihood(self.loaded, held_out, scorer, folder / "scores.csv")
        self.evaluation.details["num_held_out"] = held_out.num_measured
        if model.noise_std:
            noisy = f"likelihood: of latents plus noise of std {model.noise_std:g}, the model's own"
            self.evaluation.note("likelihood", noisy)
        self.evaluation.note(
            "likelihood",
            f"image bits per dim: {likelihood.kind} reconstruction likelihood, scale {likelihood.scale:.4g} (pixels "
            f"in [-1, 1]) fitted on training images; mean of {scorer.num_samples} posterior sample(s), not importance "
            f"weighted; control variate log q(z|x) + H(q), coefficients {scorer.control.log_prob:.3g} (log p(z)) and "
            f"{scorer.control.reconstruction:.3g} (reconstruction)",
        )
        if self.other is not None:
            csv = folder / "scores_ood.csv"
            self.evaluation.metrics |= measure_outliers(self.loaded, held_out, self.other, scorer, csv)

    def _classification(self) -> None:
        held_out, draws = self._held_out(), self.request.posterior_samples
        found = classify(self.loaded, held_out, draws, self.batch_size)
        on = f"{len(found.labels):,} labelled images, {self._name('test')}, {draws} posterior draw(s)"
        csv = self.evaluation.folder / "classification.csv"
        self.evaluation.metrics |= measure_classification(found, on, csv)

    # ------------------------------------------------------------------ names

    def _name(self, split: str) -> str:
        size = self.config.image_size
        return f"{split} split of {self.config.data.name}, {size} x {size}"

    def _extractor_name(self) -> str:
        return f"{self.extractor.name}@{self.extractor.digest[:6]}" if self.extractor is not None else ""


def evaluation_settings(loaded: LoadedRun, request: EvaluationRequest) -> dict[str, Any]:
    """Return what decides a sample, in words that a report can show; equal settings share a folder.

    A guide is named by its weights, wherever it is; `details` of the evaluation have its name.

    Args:
        loaded: with the sampling options of the request.
    Raises:
        ConfigError, CheckpointError: if there is no such guide.
    """
    guide = _guide(loaded, request)
    return {
        "step": loaded.checkpoint.step,
        "checkpoint": checkpoint_digest(loaded.checkpoint.path),
        "weights": "EMA" if loaded.averaged else "last",
        **({} if loaded.ema_length is None else {"ema_length": loaded.ema_length}),
        "guidance": _guidance(loaded, request),
        **({} if guide is None else {"autoguidance": guide.digest()}),
        "sampling": sampler_options(loaded.config.model),
        "seed": request.seed,
        "precision": str(loaded.precision),
    }


def _guide(loaded: LoadedRun, request: EvaluationRequest) -> GuideChoice | None:
    if _guidance(loaded, request) == 0:
        return None
    return chosen_guide(loaded.config, loaded.directory.path, request.autoguidance)


def _guidance(loaded: LoadedRun, request: EvaluationRequest) -> float:
    return loaded.config.sampling.guidance if request.guidance is None else request.guidance


def sampler_options(model: Part | None) -> dict[str, Any]:
    """Return the options of a model's sampler, as far as it has any."""
    return {} if model is None else model.options.get("sampling", {})
