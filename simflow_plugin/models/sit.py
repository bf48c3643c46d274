"""SiT: an interpolant between latents and noise, its velocity predicted by an adaLN-zero transformer.

Loss: E || v(x_t, t, y) - (alpha_t' z + sigma_t' eps) ||^2, x_t = alpha_t z + sigma_t eps; t = 0 is data.
With REPA-E the latents pass a batch norm without affine parameters first: the autoencoder moves under the
alignment, and the scale of its latents must not drift away under the noise. The alignment that moves the autoencoder
is that of the network in evaluation mode: running statistics, no label dropout (`model.autoencoder_pass`).
References: SiT, arXiv:2401.08740; REPA-E, arXiv:2504.10483.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simflow_plugin.contracts import ModelContext, SamplerFacts
from simflow_plugin.diffusion.diffusion_model import DiffusionModel
from simflow_plugin.diffusion.interpolants import Interpolant
from simflow_plugin.diffusion.samplers import integrate
from simflow_plugin.models.diffusion_options import SiTFacts, SiTOptions
from simflow_plugin.randomness import Random
from simflow_plugin.registry import MODELS

LATENT_NORM_EPS = 1e-4


@MODELS.register("sit")
class SiT(SiTFacts, DiffusionModel):
    """Velocity model of latents."""

    def __init__(self, options: SiTOptions, context: ModelContext) -> None:
        super().__init__(options, options.sampling, context)
        self.options = options
        self.interpolant = Interpolant(options.interpolant)
        self.latent_norm = (
            nn.BatchNorm2d(
                context.latent_shape[0], eps=LATENT_NORM_EPS, momentum=options.norm_momentum, affine=False
            )
            if options.normalizes_latents
            else None
        )

    def sample_times(self, batch_size: int, random: Random, device: torch.device) -> Tensor:
        """Draw times (B,), float32, in [0, 1).

        `log_normal`: the noise ratio sigma_t / alpha_t is exp(n), n ~ N(0, 1), as REPA-E does after EDM
        (arXiv:2206.00364); with the linear interpolant t is then logit-normal.
        """
        if self.options.time_sampling == "uniform":
            return random.uniform("time", (batch_size,), device)
        return self.interpolant.time_of_noise_ratio(random.normal("time", (batch_size,), device).exp())

    def diffuse(self, latents: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        return self.interpolant.interpolate(latents, noise, t)

    @torch.no_grad()
    def sample(self, labels: Tensor | None, shape: Sequence[int], guidance: float, random: Random) -> Tensor:
        sampling = self.options.sampling
        guide = self._guided(guidance)

        def velocity(x: Tensor, time: float, step_start: float) -> Tensor:
            t = torch.full((x.shape[0],), time, device=x.device, dtype=x.dtype)
            return guide(self.predict, x, t, step_start, labels)

        noise = random.normal("latent", shape, next(self.parameters()).device)
        samples = integrate(sampling.method, velocity, noise, sampling.num_steps, self.interpolant, random)
        return self.denormalize(samples)

    def process_facts(self) -> dict[str, object]:
        return {
            **super().process_facts(),
            "interpolant": self.options.interpolant,
            "normalizes_latents": self.options.normalizes_latents,
        }

    def sampler_facts(self) -> SamplerFacts:
        sampling = self.options.sampling
        passes = 2 * sampling.num_steps - 1 if sampling.method == "heun" else sampling.num_steps
        return SamplerFacts(f"{sampling.method}, {sampling.num_steps} steps", passes)

    def normalize(self, latents: Tensor) -> Tensor:
        """Apply the batch norm: by batch statistics in training, while running ones move, else by those."""
        return latents if self.latent_norm is None else self.latent_norm(latents)

    def normalize_in_evaluation(self, latents: Tensor) -> Tensor:
        if self.latent_norm is None:
            return latents
        mean, var = self._running_moments(self.latent_norm)
        # Copies: the training pass moves the statistics before the backward pass reads them here.
        return F.batch_norm(latents, mean.clone(), var.clone(), eps=self.latent_norm.eps)

    def denormalize(self, normalized_latents: Tensor) -> Tensor:
        """Undo `normalize` in evaluation mode, exactly: the inverse keeps the norm's epsilon."""
        if self.latent_norm is None:
            return normalized_latents
        mean, var = self._running_moments(self.latent_norm)
        std = (var + self.latent_norm.eps).sqrt()
        return normalized_latents * std.view(1, -1, 1, 1) + mean.view(1, -1, 1, 1)

    @staticmethod
    def _running_moments(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        return norm.running_mean, norm.running_var
