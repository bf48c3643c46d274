"""Posteriors of constant variance: the encoder returns the mean alone.

Both heads need C of the encoder's outputs. Put onto a pretrained encoder of (mean, log-variance) they keep the mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from simflow_plugin.contracts import MomentsMap, PosteriorContext, PosteriorHead
from simflow_plugin.errors import WeightsError
from simflow_plugin.posteriors.gaussian import FixedVariancePosterior
from simflow_plugin.posteriors.options import FixedLayerNormFacts, FixedVarianceFacts, FixedVarianceOptions
from simflow_plugin.registry import POSTERIORS


@POSTERIORS.register("fixed")
class FixedVarianceHead(FixedVarianceFacts, PosteriorHead):
    """q(z|x) = N(mean(x), sigma^2), sigma a constant and not a parameter.

    Args:
        options: sigma.
        context: number of latent channels, C.
    Raises:
        ConfigError: if there are neither one nor C standard deviations.
    Reference:
        SimFlow, arXiv:2512.04084.
    """

    std: Tensor

    def __init__(self, options: FixedVarianceOptions, context: PosteriorContext) -> None:
        super().__init__(options, context)
        std = torch.tensor(options.std, dtype=torch.float32).reshape(-1).expand(self.latent_channels)
        # Not persistent: the configuration states sigma, a checkpoint does not override it.
        self.register_buffer("std", std.clone()[:, None, None], persistent=False)

    def posterior(self, moments: Tensor) -> FixedVariancePosterior:
        return FixedVariancePosterior(moments, self.std)

    def as_moments(self) -> MomentsMap:
        identity = torch.eye(self.latent_channels)
        log_variance = 2 * self.std.flatten().cpu().log()
        return MomentsMap(
            weight=torch.cat([identity, torch.zeros_like(identity)]),
            bias=torch.cat([torch.zeros_like(log_variance), log_variance]),
        )


@POSTERIORS.register("fixed_layernorm")
class FixedVarianceLayerNormHead(FixedLayerNormFacts, FixedVarianceHead):
    """A fixed variance, with layer norm (without affine parameters) on the mean.

    Normalised per position over its C channels, so that each latent pixel's mean has squared norm C: the
    mean can neither collapse to zero nor grow, and its size relative to sigma is set by sigma alone.

    Raises:
        ConfigError: with fewer than 3 channels; 1 would leave a constant mean, 2 only a sign.
    """

    def posterior(self, moments: Tensor) -> FixedVariancePosterior:
        centred = moments - moments.mean(1, keepdim=True)
        mean = centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + 1e-6)
        return FixedVariancePosterior(mean, self.std)

    def as_moments(self) -> MomentsMap:
        raise WeightsError(
            "posterior `fixed_layernorm`: diffusers' AutoencoderKL has no layer norm on the mean. Export to a "
            ".safetensors file."
        )
