"""Likelihood of held-out images: latent density, and a bound on the images themselves, in bits per dimension.

    latent:  -log p(z) / (C h w ln 2),  z ~ q(z given x)
    image:   -E_q[log P(x given z) + log p(z)] - H(q), divided by 3 H W ln 2: an upper bound of -log2 P(x) per dimension

A model that adds noise to latents before it learns them (STARFlow) has the density of z~ = z + sigma eps. Both numbers
are then of z~: it is drawn from q~ = N(mean, std^2 + sigma^2), whose entropy takes the place of H(q), and the image is
decoded from z~ as a sample is, noise removed. That is a bound again; clean latents under a density of noised ones give
none.

P(x given z) is the mass that a Gaussian or Laplace around the decoded image, of one scale for all pixels, gives to the
8-bit level of each pixel; the lowest and highest level take the tails. Latent bits depend on the scale of the latent
space, so they compare runs with one autoencoder only; image bits compare any two.

Expectations over q are means of K draws with a control variate (`simflow_plugin.evaluation.monte_carlo`), and come with
the standard error that the draws leave.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu
from torch import Tensor

from simflow_plugin.contracts import Autoencoder, GenerativeModel, Posterior
from simflow_plugin.errors import EvaluationError, ShapeError
from simflow_plugin.evaluation.monte_carlo import (
    ENTROPY_REPLACED,
    ControlVariate,
    control_values,
    mean_and_error,
)
from simflow_plugin.files import replacing
from simflow_plugin.randomness import Random

HALF_LEVEL = 1 / 255
"""Half the distance of two 8-bit levels in [-1, 1]."""
MIN_LOG_MASS = -1e4


@dataclass(frozen=True)
class ReconstructionLikelihood:
    """P(x given decoded image).

    Args:
        kind: of the density around the decoded pixel.
        scale: standard deviation of the Gaussian, or mean absolute deviation of the Laplace; pixels in [-1, 1].
    """

    kind: Literal["gaussian", "laplace"]
    scale: float

    @classmethod
    def fit(
        cls, kind: Literal["gaussian", "laplace"], images: Tensor, decoded: Tensor
    ) -> ReconstructionLikelihood:
        """Return the likelihood whose scale is the most likely one for these pairs; use training images.

        Args:
            images: (B, 3, H, W), [-1, 1].
            decoded: likewise, from sampled latents.
        """
        residual = (images - decoded).double()
        scale = residual.square().mean().sqrt() if kind == "gaussian" else residual.abs().mean()
        # Below half a level, all the mass is on one level already, and a smaller scale only makes errors dearer.
        return cls(kind, max(float(scale), HALF_LEVEL))

    def log_prob(self, images: Tensor, decoded: Tensor) -> Tensor:
        """Return log P(images given decoded), (B,), float64, nats, for 8-bit images in [-1, 1].

        Raises:
            ShapeError: if the shapes differ.
        """
        if images.shape != decoded.shape:
            raise ShapeError(f"images {tuple(images.shape)} but decoded images {tuple(decoded.shape)}")
        images, decoded = images.double(), decoded.double()
        upper = torch.where(images >= 1 - HALF_LEVEL, math.inf, images + HALF_LEVEL - decoded)
        lower = torch.where(images <= -1 + HALF_LEVEL, -math.inf, images - HALF_LEVEL - decoded)
        # By symmetry the mass between a and b is that between -b and -a. The side away from the mean is the one where
        # differences of small tail probabilities keep their digits.
        flip = (upper + lower) > 0
        low, high = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
        log_high, log_low = self._log_cdf(high / self.scale), self._log_cdf(low / self.scale)
        log_mass = log_high + torch.log1p(-torch.exp((log_low - log_high).clamp(max=-1e-300)))
        return log_mass.clamp(min=MIN_LOG_MASS).flatten(1).sum(1)

    def _log_cdf(self, x: Tensor) -> Tensor:
        if self.kind == "gaussian":
            return torch.special.log_ndtr(x)
        return torch.where(x < 0, x - math.log(2), torch.log1p(-0.5 * torch.exp(-x.clamp(min=0))))


class ImageScores(NamedTuple):
    """Scores of B images, each (B,), float64.

    `latent_log_prob` in nats; `latent_bits_per_dim` of the latent; `image_bits_per_dim`, the bound;
    `reconstruction_bits_per_dim` and `latent_cost_bits_per_dim`, its two parts, per image dimension.
    `latent_bits_error` and `image_bits_error`: standard errors that the posterior draws leave; NaN of a single draw.
    """

    latent_log_prob: Tensor
    latent_bits_per_dim: Tensor
    image_bits_per_dim: Tensor
    reconstruction_bits_per_dim: Tensor
    latent_cost_bits_per_dim: Tensor
    latent_bits_error: Tensor
    image_bits_error: Tensor


class PosteriorDraws(NamedTuple):
    """K draws of the terms of the bound, each (K, B), float64, nats, on the CPU.

    `log_prob`: log p(z); `reconstruction`: log P(x given z); `control`: log q(z given x) + H(q), of mean zero.
    """

    log_prob: Tensor
    reconstruction: Tensor
    control: Tensor


@dataclass(frozen=True)
class Scorer:
    """Likelihood scores of images under a run's parts.

    Args:
        autoencoder: frozen.
        model: with an exact density.
        likelihood: of images given decoded ones.
        num_samples: K posterior samples an image. Their bounds are averaged: a less noisy number, not a tighter bound.
        control: coefficients of the control variate; they change the noise of the scores and not their mean.
    """

    autoencoder: Autoencoder
    model: GenerativeModel
    likelihood: ReconstructionLikelihood
    num_samples: int = 1
    control: ControlVariate = ENTROPY_REPLACED

    def __call__(self, images: Tensor, labels: Tensor | None, random: Random) -> ImageScores:
        """Score images (B, 3, H, W) in [-1, 1] with 8-bit levels, given labels (B,) or None.

        Raises:
            EvaluationError: if the model has no exact density.
        """
        with torch.no_grad():
            posterior = self.autoencoder.encode(images)
        draws = self.draw(images, posterior, labels, random, self.num_samples)
        return combine(
            draws._replace(
                log_prob=draws.log_prob - self.control.log_prob * draws.control,
                reconstruction=draws.reconstruction - self.control.reconstruction * draws.control,
            ),
            noisy_entropy(posterior, self.model.noise_std),
            math.prod(images.shape[1:]),
            math.prod(posterior.mean.shape[1:]),
        )

    @torch.no_grad()
    def draw(
        self,
        images: Tensor,
        posterior: Posterior,
        labels: Tensor | None,
        random: Random,
        num_samples: int,
        purpose: str = "likelihood",
    ) -> PosteriorDraws:
        """Draw the terms of the bound, without the control variate.

        Args:
            images: (B, 3, H, W), [-1, 1], with 8-bit levels.
            labels: (B,), or None.
            purpose: names the stream of random numbers.
        """
        rows = []
        for latents, control in posterior_draws(self.model, posterior, random, num_samples, purpose):
            log_prob = latent_log_prob(self.model, latents, labels)
            decoded = self.autoencoder.decode(self.model.remove_noise(latents, labels))
            reconstruction = self.likelihood.log_prob(images, decoded).cpu()
            rows.append((log_prob, reconstruction, control))
        return PosteriorDraws(*map(torch.stack, zip(*rows, strict=True)))


def latent_log_prob(model: GenerativeModel, latents: Tensor, labels: Tensor | None) -> Tensor:
    """Return log p(latents given labels), (B,), float64, nats, on the CPU.

    Raises:
        EvaluationError: if the model has no exact density.
    """
    try:
        return model.log_prob(latents, labels).double().cpu()
    except NotImplementedError as error:
        raise EvaluationError(f"{error}: likelihood metrics need an exact density, as flows have.") from error


def draw_latents(posterior: Posterior, noise_std: float, noise: Tensor) -> Tensor:
    """Draw latents as the model learns them, from N(mean, std^2 + noise_std^2).

    Args:
        noise_std: the model's `noise_std`, 0 for most.
        noise: (B, C, h, w), standard normal.
    """
    if noise_std == 0:
        return posterior.sample(noise=noise)
    return posterior.mean + (posterior.std.square() + noise_std**2).sqrt() * noise.to(posterior.mean)


def posterior_draws(
    model: GenerativeModel, posterior: Posterior, random: Random, num_samples: int, purpose: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield `num_samples` draws of latents as the model learns them, (B, C, h, w), and of the control variate, (B,)."""
    for sample in range(num_samples):
        noise = random.normal(f"{purpose}_{sample}", posterior.mean.shape, posterior.mean.device)
        yield draw_latents(posterior, model.noise_std, noise), control_values(noise)


def noisy_entropy(posterior: Posterior, noise_std: float) -> Tensor:
    """Return the entropy of latents plus independent Gaussian noise, (B,), float64, nats, on the CPU."""
    if noise_std == 0:
        return posterior.entropy().double().cpu()
    variance = posterior.std.double().square().expand_as(posterior.mean) + noise_std**2
    return 0.5 * torch.log(2 * math.pi * math.e * variance).flatten(1).sum(1).cpu()


def combine(draws: PosteriorDraws, entropy: Tensor, image_dims: int, latent_dims: int) -> ImageScores:
    """Put the terms of the bound together, averaged over the draws.

    Args:
        draws: K draws of the terms, less noisy for a control variate or as they are.
        entropy: (B,), of q, nats.
        image_dims: 3 H W.
        latent_dims: C h w.
    """
    log_prob, log_prob_error = mean_and_error(draws.log_prob)
    reconstruction, _ = mean_and_error(draws.reconstruction)
    _, bound_error = mean_and_error(draws.log_prob + draws.reconstruction)
    return ImageScores(
        log_prob,
        bits_per_dim(-log_prob, latent_dims),
        bits_per_dim(-(reconstruction + log_prob + entropy), image_dims),
        bits_per_dim(-reconstruction, image_dims),
        bits_per_dim(-(log_prob + entropy), image_dims),
        bits_per_dim(log_prob_error, latent_dims),
        bits_per_dim(bound_error, image_dims),
    )


def bits_per_dim(nll: Tensor, dims: int) -> Tensor:
    """Return nll / (dims ln 2) of nll (B,) in nats."""
    return nll / (dims * math.log(2))


def auroc(
    inside: Sequence[float] | NDArray[np.floating], outside: Sequence[float] | NDArray[np.floating]
) -> float:
    """Return the probability that a score of `inside` is above one of `outside`, ties counted half.

    Exact, by ranks (Mann-Whitney). Below 0.5, outside images are the more likely ones, which happens to densities:
    Nalisnick et al., arXiv:1810.09136.

    Args:
        inside: (N,), scores (log-likelihoods) of the data set that the model learned.
        outside: (M,), of the other one.
    Raises:
        EvaluationError: if one of them is empty, or a score is not a number.
    """
    if min(len(inside), len(outside)) == 0 or np.isnan(inside).any() or np.isnan(outside).any():
        raise EvaluationError(
            f"AUROC of {len(inside)} against {len(outside)} scores: both need scores, and none may be NaN."
        )
    wins = mannwhitneyu(inside, outside, method="asymptotic").statistic
    return float(wins / (len(inside) * len(outside)))


def write_scores(path: Path, columns: Mapping[str, NDArray[np.generic] | Tensor]) -> None:
    """Write one row an image to a CSV file, all at once.

    Args:
        columns: heading -> values, all of one length.
    """
    values = [column.tolist() for column in columns.values()]
    with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*values, strict=True))
