"""Diagonal Gaussian posteriors q(z given x) = N(mean, diag(std^2)): fixed variance, learned variance.

With D = C * h * w latent dimensions, all in nats and summed over them:

    log q(z|x) = -1/2 sum [ log(2 pi) + log var + (z - mean)^2 / var ]
    H(q)       =  1/2 sum [ log(2 pi e) + log var ]
    KL(q || N(0, I)) = 1/2 sum [ mean^2 + var - 1 - log var ]
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from simflow_plugin.errors import ShapeError

LOG_2PI = math.log(2 * math.pi)


class GaussianPosterior(ABC):
    """A diagonal Gaussian over latents; its subclasses differ in where the variance comes from.

    Attributes:
        learns_variance: whether the encoder predicts the variance, so that it needs a KL or an entropy term.
        mean: (B, C, h, w), float32 or wider.
        std: (B, C, h, w), > 0; a view without own memory where the variance is constant.
        log_variance: broadcasts to (B, C, h, w).
    """

    learns_variance: ClassVar[bool]
    mean: Tensor
    std: Tensor
    log_variance: Tensor

    @abstractmethod
    def normalized(self, shift: Tensor, scale: Tensor) -> GaussianPosterior:
        """Return the distribution of (z - shift) * scale.

        Args:
            shift: broadcasts to (B, C, h, w).
            scale: > 0, broadcasts to (B, C, h, w).
        """

    def sample(self, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        """Draw latents mean + std * noise, differentiable in both.

        Args:
            generator: source of the noise, on any device; None uses the global one.
            noise: (B, C, h, w), standard normal numbers to use in place of new ones.
        Returns:
            (B, C, h, w), in the dtype of `mean`.
        Raises:
            ShapeError: if `noise` is not shaped like `mean`.
        """
        if noise is None:
            device = self.mean.device if generator is None else generator.device
            noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
        elif noise.shape != self.mean.shape:
            raise ShapeError(
                f"noise has shape {tuple(noise.shape)}, but the posterior's mean has {tuple(self.mean.shape)}"
            )
        return self.mean + self.std * noise.to(self.mean)

    def mode(self) -> Tensor:
        """Return the most likely latents, the mean."""
        return self.mean

    def kl(self) -> Tensor:
        """Return the divergence from the standard normal, (B,), nats."""
        return 0.5 * self._sum(self.mean.square() + self.log_variance.exp() - 1 - self.log_variance)

    def entropy(self) -> Tensor:
        """Return the differential entropy, (B,), nats."""
        return 0.5 * self._sum(LOG_2PI + 1 + self.log_variance)

    def log_prob(self, latents: Tensor) -> Tensor:
        """Return log q(latents given x), (B,), nats.

        Args:
            latents: (B, C, h, w).
        Raises:
            ShapeError: if `latents` is not shaped like `mean`.
        """
        if latents.shape != self.mean.shape:
            raise ShapeError(
                f"latents have shape {tuple(latents.shape)}, but the posterior's mean has "
                f"{tuple(self.mean.shape)}"
            )
        squared = (latents - self.mean).square() * torch.exp(-self.log_variance)
        return -0.5 * self._sum(LOG_2PI + self.log_variance + squared)

    def _sum(self, per_dim: Tensor) -> Tensor:
        return per_dim.expand_as(self.mean).flatten(1).sum(1)


class FixedVariancePosterior(GaussianPosterior):
    """q(z|x) = N(mean(x), sigma^2), sigma a constant: the entropy does not depend on the encoder.

    Args:
        mean: (B, C, h, w).
        std: > 0, broadcasts to `mean`; one number or one per channel (C, 1, 1).
    Reference:
        SimFlow, arXiv:2512.04084.
    """

    learns_variance = False

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self._sigma = std.to(mean)
        self.mean = mean
        self.std = self._sigma.expand_as(mean)
        self.log_variance = 2 * self._sigma.log()

    def normalized(self, shift: Tensor, scale: Tensor) -> FixedVariancePosterior:
        return FixedVariancePosterior((self.mean - shift) * scale, self._sigma * scale)


class LearnedVariancePosterior(GaussianPosterior):
    """q(z|x) = N(mean(x), exp(log_variance(x))), as in a VAE.

    Args:
        mean: (B, C, h, w).
        log_variance: (B, C, h, w), or what broadcasts to it: (B, 1, h, w) for one variance per position, (C, 1, 1) for
            one per channel. The head clamps it.
    Reference:
        Auto-Encoding Variational Bayes, arXiv:1312.6114.
    """

    learns_variance = True

    def __init__(self, mean: Tensor, log_variance: Tensor) -> None:
        self.mean = mean
        self.log_variance = log_variance
        self.std = torch.exp(0.5 * log_variance).expand_as(mean)

    def normalized(self, shift: Tensor, scale: Tensor) -> LearnedVariancePosterior:
        return LearnedVariancePosterior((self.mean - shift) * scale, self.log_variance + 2 * scale.log())
