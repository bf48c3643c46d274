"""The evaluation of a run: samples in shards, metrics with intervals and warnings, one result file a setting.

    RUN/evaluations/<key>/shard_*.npz  result.json  scores.csv  evaluation.html

The key stands for what decides a sample: checkpoint, weights, sampler, guidance, seed. A later evaluation of the same
setting adds its numbers to the same result.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simflow_plugin import registry
from simflow_plugin.config.schema import Part, resolve_part
from simflow_plugin.config.validation import validate
from simflow_plugin.config.yaml_source import YamlSource
from simflow_plugin.contracts import NO_LABEL, DataContext, ImageDataset
from simflow_plugin.data.disk_cache import fingerprint
from simflow_plugin.data.feature_cache import dataset_facts
from simflow_plugin.data.loader import evaluation_batches
from simflow_plugin.data.split import data_has_changed
from simflow_plugin.errors import SimflowError
from simflow_plugin.evaluation.drawing import draw_images, to_uint8
from simflow_plugin.evaluation.extractors import Extractor, ImageFeatures, build_extractor
from simflow_plugin.evaluation.fidelity import cached_features, distance, extract, fidelity
from simflow_plugin.evaluation.held_out import (
    HeldOut,
    find_lpips,
    fit_likelihood,
    measure_likelihood,
    measure_outliers,
    measure_reconstruction,
)
from simflow_plugin.evaluation.intervals import proportion
from simflow_plugin.evaluation.judges import check_judge, judge_samples
from simflow_plugin.evaluation.likelihood import Scorer
from simflow_plugin.evaluation.measured import Measured
from simflow_plugin.evaluation.request import (
    EvaluationRequest,
    assignment,
    checked_parts,
    has_density,
    with_sampling,
)
from simflow_plugin.evaluation.result import Evaluation, read_evaluation
from simflow_plugin.evaluation.sample_shards import SampleShards
from simflow_plugin.progress_bar import count_progress
from simflow_plugin.runs.checkpoints import MANIFEST
from simflow_plugin.runs.loaded_run import LoadedRun
from simflow_plugin.runs.parts import build_dataset


class RunEvaluator:
    """Evaluates one loaded run.

    Everything that can be refused is checked here, before the first sample is drawn.

    Args:
        loaded: the run; its model is rebuilt where sampling options change.
        request: what to measure.
    Raises:
        EvaluationError, WeightsError, ConfigError: for a request that cannot be met.
    """

    def __init__(self, loaded: LoadedRun, request: EvaluationRequest) -> None:
        self.parts = checked_parts(loaded, request)
        self.loaded = with_sampling(loaded, request.sampling)
        self.request = request
        self.config = loaded.config
        self.guidance = loaded.config.sampling.guidance if request.guidance is None else request.guidance
        self.batch_size = request.batch_size or loaded.config.sampling.batch_size
        self.extractor: Extractor | None = None
        self._sample_features: ImageFeatures | None = None  # kept for the distance to reconstructions
        if request.extractor is not None and set(self.parts) & {"generation", "reconstruction"}:
            self.extractor = build_extractor(request.extractor, request.weights, loaded.device)
        self.lpips, note = None, ""
        if "reconstruction" in self.parts:
            self.lpips, note = find_lpips(loaded, request.lpips_backbone)
        settings = self.settings()
        folder = (
            loaded.directory.path / "evaluations" / f"step_{settings['step']:08d}_{fingerprint(settings)}"
        )
        self.evaluation = Evaluation(folder, settings, notes=[note] if note else [])
        self.shards = SampleShards(folder, request.num_samples)
        self.test = build_dataset(self.config, "test")
        self.other = self._build_other()
        if "generation" in self.parts:
            check_judge(self.config, request.num_samples)

    def settings(self) -> dict[str, Any]:
        """Return what decides a sample, in words that a report can show."""
        manifest = (self.loaded.checkpoint.path / MANIFEST).read_text()
        model = self.config.model
        sampling = model.options.get("sampling", {}) if model is not None else {}
        return {
            "step": self.loaded.checkpoint.step,
            "checkpoint": fingerprint({"manifest": manifest}),
            "weights": "EMA" if self.loaded.averaged else "last",
            **({} if self.loaded.ema_length is None else {"ema_length": self.loaded.ema_length}),
            "guidance": self.guidance,
            "sampling": {**sampling, **dict(map(assignment, self.request.sampling))},
            "seed": self.request.seed,
        }

    def make_samples(self, rank: int = 0, world_size: int = 1) -> None:
        """Draw the missing samples of this process."""
        if "generation" not in self.parts:
            return
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
            on = f"{self.loaded.device.type}, batches of {self.batch_size}, guidance {self.guidance:g}"
            self.evaluation.metrics["sampling_seconds"] = Measured(seconds, on=on)

    def measure(self) -> Evaluation:
        """Measure everything that was asked for, on the samples on disk; write and return the result."""
        self.evaluation.folder.mkdir(parents=True, exist_ok=True)
        changed = data_has_changed(self.loaded.checkpoint.state, build_dataset(self.config, "train"))
        if changed:
            self.evaluation.notes.append(changed)
        parts = self.parts
        if "generation" in parts:
            self.evaluation.metrics |= self._generation()
        if "reconstruction" in parts:
            self.evaluation.metrics |= self._reconstruction()
        if "likelihood" in parts:
            self._likelihood()
        self.evaluation.save()
        return read_evaluation(self.evaluation.folder)

    # ------------------------------------------------------------------ generation

    def _draw(self, indices: Sequence[int]) -> tuple[Any, Any]:
        classes = self.loaded.num_classes
        labels = torch.tensor([i % classes if classes else NO_LABEL for i in indices])
        images = draw_images(
            self.loaded.autoencoder,
            self.loaded.require_model(),
            indices,
            labels,
            self.guidance,
            self.request.seed,
            self.config.image_size,
        )
        return to_uint8(images).numpy(), labels.numpy()

    def _generation(self) -> dict[str, Measured]:
        found: dict[str, Measured] = {}
        count = self.request.num_samples
        samples_on = f"{count:,} samples"
        if self.extractor is not None:
            real_set = self.test if self.request.reference == "test" else build_dataset(self.config, "train")
            with count_progress("features of samples", count) as advance:
                samples = extract(self.extractor, self._sample_batches(), advance)
            self._sample_features = samples
            real = self._real_features(real_set, self.request.reference, len(real_set))
            real_on = f"{len(real_set):,} images, {self._name(self.request.reference)}"
            on = f"{samples_on} against {real_on}, {self._extractor_name()}"
            for name, number in fidelity(samples, real, self.extractor, self.request.seed).items():
                found[name] = number.with_notes(on, self._own_data_warning())
        if self.config.evaluation.judge != "none":
            try:
                found |= self._judge(samples_on)
            except SimflowError as error:  # the other numbers, and the samples, are worth keeping
                self.evaluation.notes.append(f"not judged: {error}")
        return found

    def _sample_batches(self) -> Iterator[Tensor]:
        for images, _ in self.shards.read():
            yield from torch.from_numpy(images).permute(0, 3, 1, 2).split(self.batch_size)

    def _real_features(self, dataset: ImageDataset, split: str, count: int) -> Any:
        assert self.extractor is not None
        data = self.config.data
        facts = dataset_facts(data.name, data.options, dataset, split, self.config.image_size)
        facts["count"] = count

        def compute() -> Any:
            assert self.extractor is not None
            with count_progress("features of real images", count) as advance:
                batches = evaluation_batches(dataset, self.batch_size, range(count))
                pixels = (to_uint8(batch.images).permute(0, 3, 1, 2) for batch in batches)
                return extract(self.extractor, pixels, advance)

        return cached_features(facts, self.extractor, compute)

    def _judge(self, samples_on: str) -> dict[str, Measured]:
        parts = [np.concatenate(part) for part in zip(*self.shards.read(), strict=True)]
        judgement = judge_samples(
            self.config, self.test, torch.from_numpy(parts[0]), torch.from_numpy(parts[1])
        )
        real = f"{judgement.class_agreement_real:.1%} of held-out images right"
        on = f"{samples_on}, judge: {judgement.judge} ({real})"
        num_right = round(judgement.class_agreement * judgement.num_samples)
        return {
            "class_agreement": proportion(num_right, judgement.num_samples).with_notes(on),
            "diversity_ratio": Measured(judgement.diversity_ratio, on=on),
        }

    # ------------------------------------------------------------------ held-out images

    def _held_out(self) -> HeldOut:
        count = min(self.request.num_held_out or len(self.test), len(self.test))
        return HeldOut(self.test, self._name("test"), count, self.batch_size, self.request.seed)

    def _reconstruction(self) -> dict[str, Measured]:
        originals, decoded = [], []
        held_out = self._held_out()

        def keep(images: Tensor, reconstruction: Tensor) -> None:
            if self.extractor is not None:
                originals.append(self.extractor(images))
                decoded.append(self.extractor(reconstruction))

        found = measure_reconstruction(self.loaded, held_out, self.lpips, keep)
        if self.extractor is not None and held_out.count >= 2:
            features = [_concatenate(part) for part in (decoded, originals)]
            inception, suffix = self.extractor.is_inception, self.extractor.suffix
            on = f"{held_out.count:,} images, {held_out.name}, posterior mean, {self._extractor_name()}"
            number = distance(features[0], features[1]).with_notes(on)
            found["rfid" if inception else f"rfd_{suffix}"] = number
            if self._sample_features is not None:
                number = distance(self._sample_features, features[0])
                on = f"{self.request.num_samples:,} samples against reconstructions of {on}"
                key = "fid_to_reconstructions" if inception else f"fd_to_reconstructions_{suffix}"
                found[key] = number.with_notes(on)
        return found

    def _likelihood(self) -> None:
        model = self.loaded.model
        if model is None or not has_density(self.loaded):
            self.evaluation.notes.append("likelihood: not measured, the model has no exact density")
            return
        train = build_dataset(self.config, "train")
        likelihood = fit_likelihood(self.loaded, train, self.request.likelihood, self.batch_size)
        scorer = Scorer(self.loaded.autoencoder, model, likelihood, self.request.posterior_samples)
        folder, held_out = self.evaluation.folder, self._held_out()
        self.evaluation.metrics |= measure_likelihood(self.loaded, held_out, scorer, folder / "scores.csv")
        if model.noise_std:
            self.evaluation.notes.append(
                f"likelihood: of latents plus noise of std {model.noise_std:g}, the model's own"
            )
        self.evaluation.notes.append(
            f"image bits per dim: {likelihood.kind} reconstruction likelihood, scale {likelihood.scale:.4g} (pixels "
            f"in [-1, 1]) fitted on training images; mean of {scorer.num_samples} posterior sample(s), not importance "
            "weighted"
        )
        if self.other is not None:
            csv = folder / "scores_ood.csv"
            self.evaluation.metrics |= measure_outliers(self.loaded, held_out, self.other, scorer, csv)

    # ------------------------------------------------------------------ names and checks

    def _name(self, split: str) -> str:
        return (
            f"{split} split of {self.config.data.name}, {self.config.image_size} x {self.config.image_size}"
        )

    def _extractor_name(self) -> str:
        return f"{self.extractor.name}@{self.extractor.digest[:6]}" if self.extractor is not None else ""

    def _own_data_warning(self) -> str:
        return "compared with the training split" if self.request.reference == "train" else ""

    def _build_other(self) -> HeldOut | None:
        if self.request.ood is None:
            return None
        source = YamlSource({}, {}, "--ood")
        source.override(f"data={self.request.ood}", option="--ood")
        raw = validate(Part, source.values["data"], source, ("data",))
        part = resolve_part(raw, registry.DATASETS, source, ("data",))
        dataset = part.build(registry.DATASETS, DataContext(self.config.image_size, "test", self.config.seed))
        count = min(self.request.num_held_out or len(dataset), len(dataset))
        return HeldOut(dataset, f"test split of {part.name}", count, self.batch_size, self.request.seed)


def _concatenate(features: list[Any]) -> Any:
    columns = zip(*features, strict=True)
    return type(features[0])(*(torch.cat(part) if part[0] is not None else None for part in columns))
