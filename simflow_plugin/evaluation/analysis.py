"""The analysis of a run's latent space, decoder and flow on held-out images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simflow_plugin.data.loader import evaluation_batches
from simflow_plugin.data.order import sample_rows
from simflow_plugin.errors import EvaluationError
from simflow_plugin.evaluation.flow_diagnostics import (
    FlowDiagnostics,
    diagnose_flow,
    jacobi_iterations,
)
from simflow_plugin.evaluation.held_out import find_lpips
from simflow_plugin.evaluation.intervals import bootstrap_mean
from simflow_plugin.evaluation.latent_statistics import (
    latent_statistics,
    noise_robustness,
    power_by_radius,
)
from simflow_plugin.evaluation.report.interpolations import interpolation_strips
from simflow_plugin.evaluation.result import Measured
from simflow_plugin.progress_bar import count_progress
from simflow_plugin.randomness import IndexedRandom
from simflow_plugin.runs.loaded_run import LoadedRun
from simflow_plugin.runs.parts import build_dataset

NOISE_STDS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5)
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
NUM_WHITE = 500
"""Latents of white noise that the statistics are compared with."""
NUM_JACOBI = 8
"""Rows of the Jacobi measurement: iterations are the most that any row needs."""


@dataclass(frozen=True)
class AnalysisRequest:
    """Size of an analysis.

    Args:
        num_images: held-out images; None is the whole split.
        num_strips: pairs of images to interpolate between.
        num_steps: images of a strip.
        seed: of noise and posterior samples.
        batch_size: None is the run's own.
        lpips_backbone: AlexNet's file; None looks into torch's hub cache, and does without if it is not there.
    """

    num_images: int | None = None
    num_strips: int = 6
    num_steps: int = 9
    seed: int = 0
    batch_size: int | None = None
    lpips_backbone: str | None = None


@dataclass(frozen=True)
class Analysis:
    """Numbers and pictures of an analysis.

    Args:
        metrics: latent statistics by name.
        white_noise: the same statistics of white noise of the latents' shape.
        spectrum: (frequency in cycles per position, mean power) of the latents, by `mean` and `sample`.
        robustness: `psnr` and, where its weights are, `lpips`: noise's standard deviation -> value.
        posterior_std: mean of the posterior's own standard deviation, for the same axis.
        strips: (N, steps, 3, H, W), [-1, 1].
        strip_names: (N) their ends by class; empty for unlabelled data.
        flow: diagnostics, or None for a model without a flow.
        jacobi: tolerance -> iterations by block, or None.
        num_tokens: of the flow's sequence; 0 without a flow.
        precision: of the networks.
    """

    metrics: dict[str, Measured]
    white_noise: dict[str, float]
    spectrum: dict[str, tuple[list[float], list[float]]]
    robustness: dict[str, dict[float, Measured]]
    posterior_std: float
    strips: Tensor
    strip_names: list[str]
    flow: FlowDiagnostics | None
    jacobi: dict[float, list[int]] | None
    num_tokens: int
    precision: str

    def to_json(self) -> dict[str, Any]:
        """Return all numbers, without the pictures."""
        document: dict[str, Any] = {
            "metrics": {name: number.to_json() for name, number in self.metrics.items()},
            "robustness_by_noise_std": {
                name: {f"{std:g}": number.to_json() for std, number in curve.items()}
                for name, curve in self.robustness.items()
            },
            "posterior_std": self.posterior_std,
            "precision": self.precision,
        }
        if self.flow is not None:
            flow = {
                key: value.tolist() if isinstance(value, Tensor) else value
                for key, value in vars(self.flow).items()
            }
            document["flow"] = flow
        if self.jacobi is not None:
            document["jacobi_iterations_by_tolerance"] = {
                f"{tol:g}": blocks for tol, blocks in self.jacobi.items()
            }
        return document


@torch.no_grad()
def analyze_run(loaded: LoadedRun, request: AnalysisRequest) -> Analysis:
    """Analyze a run on held-out images.

    Raises:
        EvaluationError: if there are fewer than two images.
    """
    test = build_dataset(loaded.config, "test")
    count = min(request.num_images or len(test), len(test))
    if count < 2:
        raise EvaluationError(
            f"{count} held-out images: two are the least that can be analyzed. Use --num-images."
        )
    batch_size = request.batch_size or loaded.config.sampling.batch_size
    lpips, _ = find_lpips(loaded, request.lpips_backbone)
    means, samples, labels, quality, stds = [], [], [], [], []
    with count_progress("held-out images", count) as advance:
        for batch in evaluation_batches(test, batch_size, sample_rows(len(test), count)):
            images = batch.images.to(loaded.device)
            random = IndexedRandom(request.seed, tuple(batch.indices.tolist()))
            with loaded.precision.active():
                posterior = loaded.autoencoder.encode(images)
                noise = random.normal("posterior", posterior.mean.shape, loaded.device)
                means.append(posterior.mean.float().cpu())
                samples.append(posterior.sample(noise=noise).float().cpu())
                stds.append(posterior.std.float().expand_as(posterior.mean).flatten(1).mean(1).cpu())
                quality.append(noise_robustness(loaded.autoencoder, images, NOISE_STDS, random, lpips))
            labels.append(batch.labels)
            advance(len(images))
    latents, sampled = torch.cat(means), torch.cat(samples)
    with loaded.precision.active():
        flow, jacobi, num_tokens = _analyze_flow(loaded, sampled, torch.cat(labels), request, batch_size)
    strips, strip_names = interpolation_strips(loaded, test, request.num_strips, request.num_steps)
    return Analysis(
        metrics=_statistics(latents, sampled, f"{count:,} held-out images"),
        white_noise=_statistics_of_white_noise(latents.shape[1:]),
        spectrum={"posterior mean": power_by_radius(latents), "posterior sample": power_by_radius(sampled)},
        robustness=_robustness(quality),
        posterior_std=float(torch.cat(stds).double().mean()),
        strips=strips,
        strip_names=strip_names,
        flow=flow,
        jacobi=jacobi,
        num_tokens=num_tokens,
        precision=str(loaded.precision),
    )


def _statistics(means: Tensor, samples: Tensor, on: str) -> dict[str, Measured]:
    """Return the statistics of posterior means, and of samples: what the generative model sees."""
    found = {}
    for suffix, what, latents in (("", "mean", means), ("_of_samples", "samples", samples)):
        for name, values in latent_statistics(latents).items():
            found[name + suffix] = bootstrap_mean(values.numpy()).with_notes(f"{on}, posterior {what}")
    return found


def _statistics_of_white_noise(shape: torch.Size) -> dict[str, float]:
    """Small grids have few frequencies, so that no formula for large ones is right."""
    noise = IndexedRandom(0, tuple(range(NUM_WHITE))).normal("white", (NUM_WHITE, *shape))
    return {name: float(values.double().mean()) for name, values in latent_statistics(noise).items()}


def _robustness(batches: list[dict[str, dict[float, Tensor]]]) -> dict[str, dict[float, Measured]]:
    return {
        name: {
            std: bootstrap_mean(torch.cat([batch[name][std] for batch in batches]).numpy())
            for std in NOISE_STDS
        }
        for name in batches[0]
    }


def _analyze_flow(
    loaded: LoadedRun, latents: Tensor, labels: Tensor, request: AnalysisRequest, batch_size: int
) -> tuple[FlowDiagnostics | None, dict[float, list[int]] | None, int]:
    flow = None if loaded.model is None else loaded.model.token_flow()
    if flow is None:
        return None, None, 0
    model: Any = loaded.model
    known = loaded.known_labels(labels)
    # A flow that was trained on noisy latents knows no others.
    noise = IndexedRandom(request.seed, tuple(range(len(latents)))).normal("latent_noise", latents.shape)
    tokens = model.tokens((latents + model.noise_std * noise).to(loaded.device))
    diagnostics = diagnose_flow(flow, tokens, known, batch_size)
    rows = min(NUM_JACOBI, len(tokens))
    noise = IndexedRandom(request.seed, tuple(range(rows))).normal(
        "jacobi", (rows, *tokens.shape[1:]), loaded.device
    )
    iterations = jacobi_iterations(flow, noise, known[:rows] if known is not None else None, TOLERANCES)
    return diagnostics, iterations, tokens.shape[1]
