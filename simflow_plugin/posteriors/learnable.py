"""Posteriors whose log-variance comes from the encoder, without and with noise of constant variance on top."""

from __future__ import annotations

import torch
from torch import Tensor

from simflow_plugin.contracts import MomentsMap, PosteriorHead
from simflow_plugin.errors import WeightsError
from simflow_plugin.posteriors.gaussian import LearnedVariancePosterior
from simflow_plugin.posteriors.options import LearnedVarianceFacts, NoisyVarianceFacts, NoisyVarianceOptions
from simflow_plugin.registry import POSTERIORS

LOG_VARIANCE_RANGE = (-30.0, 20.0)


@POSTERIORS.register("learnable")
class LearnedVarianceHead(LearnedVarianceFacts, PosteriorHead):
    """q(z|x) = N(mean(x), exp(log_variance(x))), the log-variance clamped to [-30, 20].

    Args:
        options: none.
        context: number of latent channels, C; the encoder returns 2 C: mean, then log-variance.
    Reference:
        Auto-Encoding Variational Bayes, arXiv:1312.6114.
    """

    @property
    def num_moments(self) -> int:
        return 2 * self.latent_channels

    def posterior(self, moments: Tensor) -> LearnedVariancePosterior:
        mean, log_variance = moments.chunk(2, dim=1)
        return LearnedVariancePosterior(mean, log_variance.clamp(*LOG_VARIANCE_RANGE))

    def as_moments(self) -> MomentsMap:
        return MomentsMap(torch.eye(self.num_moments), torch.zeros(self.num_moments))


@POSTERIORS.register("learnable_noise")
class NoisyVarianceHead(NoisyVarianceFacts, LearnedVarianceHead):
    """A learned variance plus noise that flow and decoder both see: log(exp(log_variance(x)) + noise_std^2).

    Args:
        options: the noise's standard deviation, a floor under the posterior's.
        context: number of latent channels.
    """

    options: NoisyVarianceOptions

    def posterior(self, moments: Tensor) -> LearnedVariancePosterior:
        clean = super().posterior(moments)
        # Variances of independent Gaussians add.
        log_variance = torch.log(clean.log_variance.exp() + self.options.noise_std**2)
        return LearnedVariancePosterior(clean.mean, log_variance)

    def as_moments(self) -> MomentsMap:
        raise WeightsError(
            f"posterior `learnable_noise` of noise_std {self.options.noise_std:g}: diffusers' AutoencoderKL has no "
            "noise on top of its posterior. Export to a .safetensors file."
        )
