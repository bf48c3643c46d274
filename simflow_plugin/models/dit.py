"""DiT: a discrete diffusion of latents, its noise predicted by an adaLN-zero transformer, sampled by DDIM.

x_n = sqrt(abar_n) z + sqrt(1 - abar_n) eps for n = 0 .. 999, beta linear from 1e-4 to 0.02; the loss is
E || e(x_n, n, y) - eps ||^2. Schedule and DDIM step are in `diffusion/ddim.py`.
References: DiT, arXiv:2212.09748; DDPM, arXiv:2006.11239; DDIM, arXiv:2010.02502.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from simflow_plugin.contracts import ModelContext, SamplerFacts
from simflow_plugin.diffusion.ddim import NUM_TRAIN_STEPS, ddim, ddim_schedule
from simflow_plugin.diffusion.diffusion_model import DiffusionModel
from simflow_plugin.diffusion.interpolants import expand_like
from simflow_plugin.models.diffusion_options import DiTFacts, DiTOptions
from simflow_plugin.randomness import Random
from simflow_plugin.registry import MODELS


@MODELS.register("dit")
class DiT(DiTFacts, DiffusionModel):
    """Noise model of latents.

    Args:
        options: of the model.
        context: shape of the latents, number of classes, alignment.
    """

    def __init__(self, options: DiTOptions, context: ModelContext) -> None:
        super().__init__(options, options.sampling, context)
        self.options = options
        self.alphas_cumprod: Tensor
        self.register_buffer("alphas_cumprod", ddim_schedule().alphas_cumprod, persistent=False)

    def sample_times(self, batch_size: int, random: Random, device: torch.device) -> Tensor:
        """Draw steps (B,) int64, uniform over 0 .. 999."""
        steps = (random.uniform("time", (batch_size,), device) * NUM_TRAIN_STEPS).long()
        return steps.clamp(max=NUM_TRAIN_STEPS - 1)  # float32 may round the product up to 1000

    def diffuse(self, latents: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        alpha_bar = expand_like(self.alphas_cumprod[t], latents)
        return alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise, noise

    @torch.no_grad()
    def sample(self, labels: Tensor | None, shape: Sequence[int], guidance: float, random: Random) -> Tensor:
        sampling = self.options.sampling
        guide = self._guided(guidance)

        def predict_noise(x: Tensor, step: int) -> Tensor:
            t = torch.full((x.shape[0],), step, device=x.device, dtype=torch.int64)
            return guide(self.predict, x, t, step / (NUM_TRAIN_STEPS - 1), labels)

        noise = random.normal("latent", shape, next(self.parameters()).device)
        return ddim(predict_noise, noise, sampling.num_steps, sampling.eta, random)

    def sampler_facts(self) -> SamplerFacts:
        num_steps = self.options.sampling.num_steps
        return SamplerFacts(f"ddim, {num_steps} steps", num_steps)
