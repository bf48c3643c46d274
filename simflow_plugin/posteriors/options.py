"""Options of the posterior heads."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from simflow_plugin.contexts import PosteriorContext, PosteriorFacts
from simflow_plugin.errors import ConfigError
from simflow_plugin.options import Options
from simflow_plugin.registry import POSTERIORS

MIN_NORMALIZED_CHANNELS = 3


PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class FixedVarianceOptions(Options):
    """Options of `posterior: fixed`."""

    std: PositiveFloat | list[PositiveFloat] = Field(
        0.5,
        description="sigma > 0, one number or one per channel, in the encoder's own latent space (before scale and "
        "shift)",
    )

    def check(self, context: PosteriorContext) -> None:
        if isinstance(self.std, list) and len(self.std) not in (1, context.latent_channels):
            raise ConfigError(
                f"posterior.std: {len(self.std)} numbers for {context.latent_channels} latent channels; give one "
                "number, or one per channel"
            )


class FixedVarianceLayerNormOptions(FixedVarianceOptions):
    """Options of `posterior: fixed_layernorm`."""

    def check(self, context: PosteriorContext) -> None:
        super().check(context)
        if context.latent_channels < MIN_NORMALIZED_CHANNELS:
            raise ConfigError(
                f"posterior: `fixed_layernorm` needs at least {MIN_NORMALIZED_CHANNELS} latent channels, found "
                f"{context.latent_channels}; use `fixed`, or raise latent_channels"
            )


class LearnedVarianceOptions(Options):
    """`posterior: learnable` has no options."""


class NoisyVarianceOptions(Options):
    """Options of `posterior: learnable_noise`."""

    noise_std: float = Field(
        gt=0, description="standard deviation of the noise, in the encoder's own latent space"
    )


@POSTERIORS.declare("fixed", "simflow_plugin.posteriors.fixed")
class FixedVarianceFacts(PosteriorFacts):
    """Facts of `posterior: fixed`."""

    Options: ClassVar[type[Options]] = FixedVarianceOptions
    learns_variance = False


@POSTERIORS.declare("fixed_layernorm", "simflow_plugin.posteriors.fixed")
class FixedLayerNormFacts(FixedVarianceFacts):
    """Facts of `posterior: fixed_layernorm`."""

    Options: ClassVar[type[Options]] = FixedVarianceLayerNormOptions


@POSTERIORS.declare("learnable", "simflow_plugin.posteriors.learnable")
class LearnedVarianceFacts(PosteriorFacts):
    """Facts of `posterior: learnable`."""

    Options: ClassVar[type[Options]] = LearnedVarianceOptions
    learns_variance = True


@POSTERIORS.declare("learnable_noise", "simflow_plugin.posteriors.learnable")
class NoisyVarianceFacts(LearnedVarianceFacts):
    """Facts of `posterior: learnable_noise`."""

    Options: ClassVar[type[Options]] = NoisyVarianceOptions
