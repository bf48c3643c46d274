"""Posterior heads: from what an encoder's last convolution returns to a posterior.

`fixed` and `fixed_layernorm` need the mean's C channels and no more; `learnable` needs the 2C channels of
`moments` (mean, then log-variance). A fixed head is put onto a pretrained encoder by keeping the first C of
its 2C outputs: see `simflow_plugin.autoencoders.network`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from simflow_plugin.errors import ConfigError, ShapeError
from simflow_plugin.options import Options
from simflow_plugin.posteriors.gaussian import (
    FixedVariancePosterior,
    GaussianPosterior,
    LearnedVariancePosterior,
)

LOG_VARIANCE_RANGE = (-30.0, 20.0)
DEFAULT_STD = 0.5

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class PosteriorOptions(Options):
    """Which posterior an autoencoder has."""

    kind: Literal["fixed", "learnable", "fixed_layernorm"] = Field(
        "fixed",
        description="`fixed`: constant sigma; `learnable`: log-variance from the encoder, needs a KL term; "
        "`fixed_layernorm`: constant sigma, and the mean normalised over its channels at each position.",
    )
    std: PositiveFloat | list[PositiveFloat] | None = Field(
        None,
        description="sigma > 0 of a fixed posterior, one number or one per channel, in the encoder's own "
        f"latent space (before scale and shift); {DEFAULT_STD} if not given.",
    )
    noise_std: PositiveFloat | None = Field(
        None,
        description="noise that is added to the latents of a `learnable` posterior, in the encoder's own latent "
        "space: the variance becomes sigma(x)^2 + noise_std^2, for flow and decoder alike.",
    )

    def resolved(self) -> PosteriorOptions:
        """Return the options with the standard deviation of a fixed posterior written out."""
        if self.kind == "learnable" or self.std is not None:
            return self
        return self.model_copy(update={"std": DEFAULT_STD})

    @model_validator(mode="after")
    def _std_has_an_effect(self) -> PosteriorOptions:
        if self.kind == "learnable" and self.std is not None:
            raise ValueError("std has no effect with kind `learnable`: remove it, or choose kind `fixed`")
        if self.kind != "learnable" and self.noise_std is not None:
            raise ValueError(f"noise_std has no effect with kind `{self.kind}`: its noise is `std`")
        return self


class PosteriorHead(nn.Module, ABC):
    """Maps the encoder's output to a posterior, in float32 or wider whatever the compute type.

    Args:
        latent_channels: C.
    """

    moments_per_channel: int
    """Encoder outputs per latent channel: 1 (mean) or 2 (mean and log-variance)."""

    def __init__(self, latent_channels: int) -> None:
        super().__init__()
        self.latent_channels = latent_channels

    @property
    def num_moments(self) -> int:
        """Channels that the encoder must return."""
        return self.moments_per_channel * self.latent_channels

    def forward(self, moments: Tensor) -> GaussianPosterior:
        """Return the posterior of `moments`, (B, num_moments, h, w).

        Raises:
            ShapeError: if the number of channels differs.
        """
        if moments.dim() != 4 or moments.shape[1] != self.num_moments:
            raise ShapeError(
                f"moments have shape {tuple(moments.shape)}, but {type(self).__name__} with "
                f"{self.latent_channels} latent channels expects (B, {self.num_moments}, h, w)"
            )
        # Half precision has too few digits for a likelihood, which sums over all dimensions.
        return self._posterior(moments.to(torch.promote_types(moments.dtype, torch.float32)))

    @abstractmethod
    def _posterior(self, moments: Tensor) -> GaussianPosterior: ...


class FixedVarianceHead(PosteriorHead):
    """The encoder returns the mean only; sigma is a constant, not a parameter.

    Args:
        latent_channels: C.
        std: sigma > 0, a number or C numbers.
    Raises:
        ConfigError: if sigma is not positive and finite, or its length is not C.
    """

    moments_per_channel = 1
    std: Tensor

    def __init__(self, latent_channels: int, std: float | Sequence[float] = DEFAULT_STD) -> None:
        super().__init__(latent_channels)
        values = torch.as_tensor(std, dtype=torch.float32).reshape(-1)
        if values.numel() not in (1, latent_channels):
            raise ConfigError(
                f"posterior.std: {values.numel()} numbers for {latent_channels} latent channels; give one "
                "number, or one per channel"
            )
        if not bool((values > 0).all() and values.isfinite().all()):
            raise ConfigError(
                f"posterior.std: {std} is not a positive number; a posterior needs sigma > 0 (0.5, say), "
                "since at sigma = 0 the likelihood of a latent is unbounded"
            )
        # Not persistent: the configuration states sigma, a checkpoint does not override it.
        self.register_buffer("std", values.expand(latent_channels).clone()[:, None, None], persistent=False)

    def _posterior(self, moments: Tensor) -> GaussianPosterior:
        return FixedVariancePosterior(moments, self.std)


class FixedVarianceLayerNormHead(FixedVarianceHead):
    """A fixed variance, with layer norm (without affine parameters) on the mean.

    Normalised per position over its C channels, so that each latent pixel's mean has squared norm C: the
    mean can neither collapse to zero nor grow, and its size relative to sigma is set by sigma alone.

    Raises:
        ConfigError: with fewer than 3 channels; 1 would leave a constant mean, 2 only a sign.
    """

    def __init__(self, latent_channels: int, std: float | Sequence[float] = DEFAULT_STD) -> None:
        super().__init__(latent_channels, std)
        if latent_channels < 3:
            raise ConfigError(
                f"posterior.kind: `fixed_layernorm` needs at least 3 latent channels, found "
                f"{latent_channels}; use kind `fixed`, or raise latent_channels"
            )

    def _posterior(self, moments: Tensor) -> GaussianPosterior:
        centred = moments - moments.mean(1, keepdim=True)
        mean = centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + 1e-6)
        return FixedVariancePosterior(mean, self.std)


class LearnedVarianceHead(PosteriorHead):
    """The encoder returns mean and log-variance; the latter is clamped to [-30, 20].

    Args:
        latent_channels: C.
        noise_std: of noise that is added to the latents, a floor under the std; 0 adds none.
    """

    moments_per_channel = 2

    def __init__(self, latent_channels: int, noise_std: float = 0.0) -> None:
        super().__init__(latent_channels)
        self.noise_std = noise_std

    def _posterior(self, moments: Tensor) -> GaussianPosterior:
        mean, log_variance = moments.chunk(2, dim=1)
        log_variance = log_variance.clamp(*LOG_VARIANCE_RANGE)
        if self.noise_std > 0:  # variances of independent Gaussians add
            log_variance = torch.log(log_variance.exp() + self.noise_std**2)
        return LearnedVariancePosterior(mean, log_variance)


def build_head(options: PosteriorOptions, latent_channels: int) -> PosteriorHead:
    """Return the head that `options` names, for C = `latent_channels`."""
    if options.kind == "learnable":
        return LearnedVarianceHead(latent_channels, options.noise_std or 0.0)
    std = DEFAULT_STD if options.std is None else options.std
    if options.kind == "fixed_layernorm":
        return FixedVarianceLayerNormHead(latent_channels, std)
    return FixedVarianceHead(latent_channels, std)
