"""Reconstruction and likelihood of held-out images, and out-of-distribution detection by likelihood.

Posterior samples come from one set of noises, named by image and seed 0, in every evaluation of every run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from simflow_plugin.contracts import ImageDataset, Posterior
from simflow_plugin.data.loader import Batch, evaluation_batches
from simflow_plugin.data.order import sample_rows
from simflow_plugin.data.summary import is_labelled
from simflow_plugin.errors import EvaluationError, WeightsError
from simflow_plugin.evaluation.drawing import SEED, to_uint8
from simflow_plugin.evaluation.intervals import bootstrap, bootstrap_mean
from simflow_plugin.evaluation.likelihood import (
    ImageScores,
    PosteriorDraws,
    ReconstructionLikelihood,
    Scorer,
    auroc,
    draw_latents,
    write_scores,
)
from simflow_plugin.evaluation.monte_carlo import ControlVariate, pooled_error
from simflow_plugin.evaluation.reconstruction_error import LPIPSDistance, psnr, ssim
from simflow_plugin.evaluation.result import Measured
from simflow_plugin.losses.options import LPIPS_MIN_IMAGE_SIZE
from simflow_plugin.progress_bar import count_progress
from simflow_plugin.published_weights import LPIPS_BACKBONES
from simflow_plugin.randomness import IndexedRandom
from simflow_plugin.runs.loaded_run import LoadedRun

NUM_FITTED = 256
"""Training images that the reconstruction likelihood's scale and the control variate's coefficients are fitted on."""


@dataclass(frozen=True)
class HeldOut:
    """Held-out images of a run.

    Args:
        dataset: the split.
        name: for the notes: `test split of digits, 16 x 16`.
        count: images of it to use, drawn at random if not all.
        batch_size: at a time.
        corrupt: indices of images that turned out unreadable, and are in no number; grows.
    """

    dataset: ImageDataset
    name: str
    count: int
    batch_size: int
    corrupt: set[int] = field(default_factory=set)

    @property
    def num_measured(self) -> int:
        """Images read of those asked for, once `batches` has gone through them."""
        return self.count - len(self.corrupt)

    @property
    def counted(self) -> str:
        """The number of images measured, in words."""
        left_out = f" of {self.count:,} ({len(self.corrupt)} corrupt)" if self.corrupt else ""
        return f"{self.num_measured:,}{left_out} images, {self.name}"

    def batches(self) -> Iterator[Batch]:
        """Yield the images in batches."""
        rows = sample_rows(len(self.dataset), self.count)
        return evaluation_batches(self.dataset, self.batch_size, rows, self.corrupt)


def find_lpips(loaded: LoadedRun, backbone: str | None) -> tuple[LPIPSDistance | None, str]:
    """Return LPIPS where its weights are, or None and why not; only a backbone that was named must be there.

    Args:
        backbone: AlexNet's file; None looks into torch's hub cache.
    Raises:
        WeightsError: if the file that was named is missing or of another network.
    """
    smallest, size = LPIPS_MIN_IMAGE_SIZE["alex"], loaded.config.image_size
    if size < smallest:
        return None, f"LPIPS: not measured, AlexNet needs {smallest} pixels, images have {size}"
    try:
        return LPIPSDistance(backbone, loaded.device), ""
    except WeightsError as error:
        if backbone is not None:
            raise WeightsError(f"--lpips-backbone: {error}") from error
        return (
            None,
            "LPIPS: not measured; `simflow fetch lpips` fetches AlexNet's weights, or name them with --lpips-backbone "
            f"({LPIPS_BACKBONES['alex'].address})",
        )


@torch.no_grad()
def reconstruct(loaded: LoadedRun, images: Tensor) -> Tensor:
    """Return the decoded posterior means of images (B, 3, H, W) on the run's device, float32, in [-1, 1]."""
    with loaded.precision.active():
        return loaded.autoencoder.decode(loaded.autoencoder.encode(images).mode()).float().clamp(-1, 1)


def measure_reconstruction(
    loaded: LoadedRun, held_out: HeldOut, lpips: LPIPSDistance | None, keep: Callable[[Tensor, Tensor], None]
) -> dict[str, Measured]:
    """Return PSNR, SSIM and (if given) LPIPS of decoded posterior means.

    Args:
        keep: called with originals and reconstructions of each batch, uint8 (B, 3, H, W), for rFID.
    """
    measures: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"psnr": psnr, "ssim": ssim}
    if lpips is not None:
        measures["lpips"] = lpips
    values: dict[str, list[Tensor]] = {name: [] for name in measures}
    with count_progress("reconstruction", held_out.count) as advance:
        for batch in held_out.batches():
            images = batch.images.to(loaded.device)
            decoded = reconstruct(loaded, images)
            for name, measure in measures.items():
                values[name].append(measure(decoded, images).cpu())
            keep(*(to_uint8(part).permute(0, 3, 1, 2).cpu() for part in (images, decoded)))
            advance(len(images))
    found = {name: bootstrap_mean(torch.cat(parts).numpy()) for name, parts in values.items()}
    on = f"{held_out.counted}, posterior mean"
    return {name: number.with_notes(on) for name, number in found.items()}


@torch.no_grad()
def fit_likelihood(
    loaded: LoadedRun, train: ImageDataset, kind: Literal["gaussian", "laplace"], batch_size: int
) -> ReconstructionLikelihood:
    """Fit the scale of P(x given z) on training images, decoded from posterior samples."""
    pairs = []
    model = loaded.require_model()
    for images, labels, posterior, random in _encoded(loaded, train, batch_size):
        with loaded.precision.active():
            noise = random.normal("fit_likelihood", posterior.mean.shape, loaded.device)
            latents = draw_latents(posterior, model.noise_std, noise)
            pairs.append((images, loaded.autoencoder.decode(model.remove_noise(latents, labels))))
    images, decoded = (torch.cat(part) for part in zip(*pairs, strict=True))
    return ReconstructionLikelihood.fit(kind, images, decoded)


@torch.no_grad()
def fit_control_variate(loaded: LoadedRun, train: ImageDataset, scorer: Scorer, batch_size: int) -> Scorer:
    """Return the scorer with the control variate of least noise, fitted on two draws of each of some training images.

    Images that are not scored: the mean of the scores stays what it is, exactly.
    """
    found = []
    for images, labels, posterior, random in _encoded(loaded, train, batch_size):
        with loaded.precision.active():
            found.append(scorer.draw(images, posterior, labels, random, 2, "fit_control_variate"))
    draws = PosteriorDraws(*(torch.cat(part, dim=1) for part in zip(*found, strict=True)))
    return replace(scorer, control=ControlVariate.fit(*draws))


def _encoded(
    loaded: LoadedRun, train: ImageDataset, batch_size: int
) -> Iterator[tuple[Tensor, Tensor | None, Posterior, IndexedRandom]]:
    """Yield images to fit on, their labels as the model knows them, their posteriors and their random numbers."""
    for batch in evaluation_batches(train, batch_size, sample_rows(len(train), NUM_FITTED)):
        images = batch.images.to(loaded.device)
        random = IndexedRandom(SEED, tuple(batch.indices.tolist()))
        with loaded.precision.active():
            posterior = loaded.autoencoder.encode(images)
        yield images, loaded.known_labels(batch.labels), posterior, random


def score_images(
    loaded: LoadedRun, held_out: HeldOut, scorer: Scorer, has_labels: bool
) -> tuple[ImageScores, Tensor]:
    """Score held-out images, and return their indices (N,).

    Args:
        has_labels: give the model the labels, if it knows any; otherwise the density is unconditional.
    """
    scores, indices = [], []
    with count_progress("likelihood", held_out.count) as advance:
        for batch in held_out.batches():
            random = IndexedRandom(SEED, tuple(batch.indices.tolist()))
            labels = loaded.known_labels(batch.labels) if has_labels else None
            with loaded.precision.active():
                scores.append(scorer(batch.images.to(loaded.device), labels, random))
            indices.append(batch.indices)
            advance(len(batch.images))
    found, rows = ImageScores(*map(torch.cat, zip(*scores, strict=True))), torch.cat(indices)
    refuse_not_finite(torch.stack([found.latent_log_prob, found.image_bits_per_dim], 1), rows, held_out.name)
    return found, rows


def refuse_not_finite(scores: Tensor, indices: Tensor, name: str) -> None:
    """Refuse likelihoods that are no numbers, which a mean would hand on and an order would hide.

    Args:
        scores: (N, ...), a row an image.
        indices: (N,), of the images.
    Raises:
        EvaluationError: naming the first image.
    """
    broken = ~scores.isfinite().flatten(1).all(1)
    if bool(broken.any()):
        raise EvaluationError(
            f"{name}: the likelihood of {int(broken.sum())} of {len(indices)} images is not finite, the first is image "
            f"{int(indices[broken][0])}. Has training diverged? Take an earlier checkpoint (--step), or --precision "
            "float32."
        )


def measure_likelihood(
    loaded: LoadedRun, held_out: HeldOut, scorer: Scorer, csv: Path
) -> dict[str, Measured]:
    """Return bits per dimension of latents and images, with the error of the draws; write one row an image to `csv`."""
    scores, indices = score_images(loaded, held_out, scorer, has_labels=True)
    write_scores(csv, {"index": indices, **scores._asdict()})
    given = "unconditional"
    if loaded.num_classes is not None:
        given = "given labels" if is_labelled(held_out.dataset) else "unlabelled, so unconditional"
    on = f"{held_out.counted}, {given}"
    likelihood = scorer.likelihood
    return {
        "latent_bits_per_dim": _mean_of(scores.latent_bits_per_dim, scores.latent_bits_error, on),
        "image_bits_per_dim": _mean_of(
            scores.image_bits_per_dim, scores.image_bits_error, f"{on}; {likelihood.kind} of fitted scale"
        ),
    }


def _mean_of(values: Tensor, errors: Tensor, on: str) -> Measured:
    error = pooled_error(errors)
    number = bootstrap_mean(values.numpy()).with_notes(on)
    return number if math.isnan(error) else replace(number, draws_error=error)


def measure_outliers(
    loaded: LoadedRun, held_out: HeldOut, other: HeldOut, scorer: Scorer, csv: Path
) -> dict[str, Measured]:
    """Return the AUROC of the unconditional likelihood between held-out images and another data set.

    Args:
        held_out: images of the run's own data set.
        other: images of the other one.
        csv: gets one row an image of the other data set.
    """
    inside, _ = score_images(loaded, held_out, scorer, has_labels=False)
    outside, indices = score_images(loaded, other, scorer, has_labels=False)
    write_scores(csv, {"index": indices, **outside._asdict()})
    on = f"{held_out.counted}, against {other.counted}; unconditional"
    warning = ""
    if loaded.num_classes is not None and not (loaded.model is not None and loaded.model.supports_guidance):
        warning = "trained without label dropout: its unconditional density was never trained"
    found = {
        "auroc_latent": _auroc_with_interval(inside.latent_log_prob, outside.latent_log_prob),
        "auroc_image": _auroc_with_interval(-inside.image_bits_per_dim, -outside.image_bits_per_dim),
    }
    return {name: number.with_notes(on, warning) for name, number in found.items()}


def _auroc_with_interval(inside: Tensor, outside: Tensor) -> Measured:
    """AUROC is a mean over outside images of the share of inside scores above: resample both ends' means."""
    above_outside, above_inside = _share_below(inside, outside), 1 - _share_below(outside, inside)
    intervals = bootstrap(above_outside.numpy()), bootstrap(above_inside.numpy())
    value = auroc(inside.numpy(), outside.numpy())
    # The two sources of variance are independent and add (DeLong et al. 1988).
    half = sum(((high - low) / 2) ** 2 for low, high in intervals) ** 0.5
    return Measured(value, max(0.0, value - half), min(1.0, value + half), "bootstrap of both sets")


def _share_below(values: Tensor, others: Tensor) -> Tensor:
    """Return for each value the share of `others` below it, float64, equal ones counting half; N log M, not N x M."""
    others = others.sort().values
    below, up_to = (torch.searchsorted(others, values, right=right) for right in (False, True))
    return (below + up_to).double() / (2 * len(others))
