"""The numbers of one run: what `summary.json` holds, measured on averaged weights and held-out images."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from simflow_plugin.contracts import GenerativeModel, ImageDataset
from simflow_plugin.data.loader import evaluation_batches
from simflow_plugin.data.order import sample_rows
from simflow_plugin.errors import SimflowError
from simflow_plugin.evaluation.drawing import balanced_labels, draw_many, to_uint8
from simflow_plugin.evaluation.judgement import Judgement
from simflow_plugin.evaluation.judges import judge_samples
from simflow_plugin.evaluation.likelihood import draw_latents
from simflow_plugin.evaluation.reconstruction_error import psnr
from simflow_plugin.files import write_text_atomically
from simflow_plugin.progress_bar import count_progress
from simflow_plugin.randomness import IndexedRandom
from simflow_plugin.runs.loaded_run import LoadedRun
from simflow_plugin.runs.parts import build_dataset

GRID_RECONSTRUCTIONS = 20


@dataclass
class RunMeasurement:
    """What was measured, with the pictures that go with it.

    Args:
        numbers: the content of summary.json.
        samples: uint8 (N, H, W, 3), in the order of `labels`.
        labels: (N,) int64.
        originals: uint8 (M, H, W, 3), held out.
        reconstructions: likewise.
        judgement: of the samples, where a judge is configured.
    """

    numbers: dict[str, Any]
    samples: Tensor | None = None
    labels: Tensor | None = None
    originals: Tensor | None = None
    reconstructions: Tensor | None = None
    judgement: Judgement | None = field(default=None)


def measure_run(loaded: LoadedRun) -> RunMeasurement:
    """Measure reconstruction, likelihood and samples of a run.

    PSNR is that of the decoded posterior mean. Bits per dimension are of the latent: -log2 p(z) / dims with
    z drawn from the posterior, so they compare runs with the same autoencoder only. A model that learns noised latents
    (STARFlow) is asked for those of noised ones.
    """
    numbers: dict[str, Any] = {
        "step": loaded.checkpoint.step,
        "weights": "EMA" if loaded.averaged else "last",
        "split": "test",
    }
    measurement = RunMeasurement(numbers)
    test = build_dataset(loaded.config, "test")
    _measure_held_out(loaded, test, measurement)
    if loaded.model is not None and loaded.config.evaluation.num_samples > 0:
        _measure_samples(loaded, test, measurement)
    numbers |= training_numbers(loaded)
    return measurement


def training_numbers(loaded: LoadedRun) -> dict[str, Any]:
    """Return what the run's own log says of its cost; the rate is over the whole run, sample grids
    included."""
    seconds = float(loaded.checkpoint.state["seconds"])
    images = loaded.checkpoint.step * loaded.config.training.batch_size
    parts = {"autoencoder": loaded.autoencoder, "model": loaded.model}
    parameters = {n: sum(p.numel() for p in m.parameters()) for n, m in parts.items() if m is not None}
    return {
        "train_seconds": round(seconds, 1),
        "images_per_second": round(images / max(seconds, 1e-9), 1),
        "parameters": parameters,
        "skipped_steps": loaded.checkpoint.state["skipped_steps"],
    }


@torch.no_grad()
def _measure_held_out(loaded: LoadedRun, test: ImageDataset, measurement: RunMeasurement) -> None:
    count = min(loaded.config.evaluation.num_likelihood, len(test))
    if count == 0:
        return
    originals, reconstructions, quality, nll = [], [], [], []
    with count_progress("held-out images", count) as advance:
        for batch in evaluation_batches(
            test, loaded.config.sampling.batch_size, sample_rows(len(test), count)
        ):
            images = batch.images.to(loaded.device)
            posterior = loaded.autoencoder.encode(images)
            decoded = loaded.autoencoder.decode(posterior.mode()).clamp(-1, 1)
            quality.append(psnr(decoded.cpu(), batch.images))
            originals.append(to_uint8(batch.images))
            reconstructions.append(to_uint8(decoded).cpu())
            nll.append(_latent_nll(loaded, posterior, batch.labels, batch.indices))
            advance(len(images))
    numbers = measurement.numbers
    numbers |= {"psnr": float(torch.cat(quality).mean()), "num_held_out": int(sum(map(len, originals)))}
    known = [values for values in nll if values is not None]
    if known:
        dims = math.prod(loaded.autoencoder.latent_shape(loaded.config.image_size))
        numbers |= {
            "bits_per_dim": float(torch.cat(known).mean()) / dims / math.log(2),
            "bits_per_dim_of": _density_of(loaded.model),
            "latent_dims": dims,
        }
    measurement.originals = torch.cat(originals)[:GRID_RECONSTRUCTIONS]
    measurement.reconstructions = torch.cat(reconstructions)[:GRID_RECONSTRUCTIONS]


def _latent_nll(loaded: LoadedRun, posterior: Any, labels: Tensor, indices: Tensor) -> Tensor | None:
    """Return -log p(z) in nats, (B,), or None for a model without a density."""
    if loaded.model is None:
        return None
    random = IndexedRandom(loaded.config.seed, tuple(indices.tolist()))
    noise = random.normal("held_out_posterior", posterior.mean.shape, loaded.device)
    latents = draw_latents(posterior, loaded.model.noise_std, noise)
    known = labels.to(loaded.device) if loaded.num_classes is not None else None
    try:
        return -loaded.model.log_prob(latents, known).cpu()
    except NotImplementedError:
        return None


def _density_of(model: GenerativeModel | None) -> str:
    noise_std = 0.0 if model is None else model.noise_std
    return f"latent plus noise of std {noise_std:g}" if noise_std else "latent"


def _measure_samples(loaded: LoadedRun, test: ImageDataset, measurement: RunMeasurement) -> None:
    config = loaded.config
    count = config.evaluation.num_samples
    labels = balanced_labels(count, loaded.num_classes)
    with count_progress("sampling", count) as advance:
        samples = draw_many(
            loaded.autoencoder,
            loaded.require_model(),
            labels,
            config.sampling.guidance,
            config.seed,
            config.image_size,
            config.sampling.batch_size,
            advance,
        )
    measurement.samples, measurement.labels = samples, labels
    measurement.numbers |= {"num_samples": count, "guidance": config.sampling.guidance}
    if config.evaluation.judge == "none":
        return
    try:
        measurement.judgement = judgement = judge_samples(config, test, samples, labels)
    except SimflowError as error:  # a judge that cannot judge must not cost the other numbers
        measurement.numbers["judge_error"] = str(error)
        return
    measurement.numbers |= {
        "class_agreement": judgement.class_agreement,
        "class_agreement_real": judgement.class_agreement_real,
        "diversity_ratio": judgement.diversity_ratio,
    }


def write_summary(loaded: LoadedRun, measurement: RunMeasurement) -> None:
    """Write summary.json."""
    write_text_atomically(loaded.directory.summary_file, json.dumps(measurement.numbers, indent=2) + "\n")
