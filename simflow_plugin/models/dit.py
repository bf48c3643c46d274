"""DiT: a discrete diffusion of latents, its noise predicted by an adaLN-zero transformer, sampled by DDIM.

x_n = sqrt(abar_n) z + sqrt(1 - abar_n) eps for n = 0 .. 999, beta linear from 1e-4 to 0.02; the loss is
E || e(x_n, n, y) - eps ||^2.
References: DiT, arXiv:2212.09748; DDPM, arXiv:2006.11239; DDIM, arXiv:2010.02502.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from simflow_plugin.contracts import ModelContext, SamplerFacts
from simflow_plugin.diffusion.diffusion_model import DiffusionModel
from simflow_plugin.diffusion.interpolants import expand_like
from simflow_plugin.diffusion.options import NUM_TRAIN_STEPS
from simflow_plugin.models.diffusion_options import DiTFacts, DiTOptions
from simflow_plugin.randomness import Random
from simflow_plugin.registry import MODELS


@MODELS.register("dit")
class DiT(DiTFacts, DiffusionModel):
    """Noise model of latents."""

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


def ddim_schedule() -> Any:  # diffusers' scheduler mixin hides its attributes from type checkers
    """Return a new schedule: 1000 linear betas."""
    from diffusers import DDIMScheduler  # imported here: it takes seconds, and listing names needs none

    return DDIMScheduler(
        num_train_timesteps=NUM_TRAIN_STEPS, beta_start=1e-4, beta_end=0.02, beta_schedule="linear"
    )


def ddim_times(num_steps: int) -> list[int]:
    """Return the training steps that 1 .. 1000 steps visit, evenly spaced, from the very last one down.

    A spacing that starts before it starts where the input is not yet pure noise (arXiv:2305.08891).
    """
    return [round(NUM_TRAIN_STEPS * left / num_steps) - 1 for left in range(num_steps, 0, -1)]


def ddim(
    predict_noise: Callable[[Tensor, int], Tensor], noise: Tensor, num_steps: int, eta: float, random: Random
) -> Tensor:
    """Return samples shaped like `noise` by DDIM.

    With abar before and abar' after a step, x0 = (x - sqrt(1 - abar) e) / sqrt(abar):
    x' = sqrt(abar') x0 + sqrt(1 - abar' - sigma^2) e + sigma z,
    sigma^2 = eta^2 (1 - abar') / (1 - abar) (1 - abar / abar').
    The schedule of the betas is diffusers'; its own step takes the next time to be 1000 // n earlier, which is another
    one wherever n does not divide 1000. Reference: arXiv:2010.02502, equations 12 and 16.

    Args:
        predict_noise: e(x_n (B, ...), n in 0 .. 999) -> (B, ...).
        noise: (B, ...), standard normal.
        num_steps: in 1 .. 1000.
        eta: 0 is deterministic, 1 adds as much noise as DDPM.
        random: noise of the steps, purpose `ddim/<step>`; drawn from only if eta > 0.
    """
    alphas_cumprod = ddim_schedule().alphas_cumprod.double()
    times = ddim_times(num_steps)
    levels = [float(alphas_cumprod[time]) for time in times] + [1.0]  # the last step ends at the data
    x = noise
    for index, (time, (level, next_level)) in enumerate(zip(times, pairwise(levels), strict=True)):
        prediction = predict_noise(x, time)
        clean = (x - math.sqrt(1 - level) * prediction) / math.sqrt(level)
        sigma = eta * math.sqrt((1 - next_level) / (1 - level) * (1 - level / next_level))
        x = math.sqrt(next_level) * clean + math.sqrt(max(0.0, 1 - next_level - sigma**2)) * prediction
        if sigma > 0:
            x = x + sigma * random.normal(f"ddim/{index}", x.shape, x.device).to(x.dtype)
    return x
