"""STARFlow: the flow on latents of a frozen encoder plus noise, and samples that are denoised again.

Training: maximum likelihood of z~ = z + sigma eps. Sampling: z~ from the flow, then Tweedie's formula with
the flow's own density, z = z~ + sigma^2 grad log p(z~), which is E[z given z~] if the flow is exact;
or a decoder that was fine-tuned on noisy latents takes z~ as it is.
Reference: STARFlow, arXiv:2506.06276; TarFlow, arXiv:2412.06329, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from simflow_plugin.contracts import ModelContext, SamplerFacts
from simflow_plugin.models.flow_options import StarFlowFacts, StarFlowOptions
from simflow_plugin.models.simflow import SimFlow
from simflow_plugin.randomness import Random
from simflow_plugin.registry import MODELS


@MODELS.register("starflow")
class StarFlow(StarFlowFacts, SimFlow):
    """SimFlow's flow as STARFlow trains it: latents noised, encoder left alone, samples denoised.

    `log_prob` is the density of noised latents; an alignment is of the flow alone (REPA).
    """

    options: StarFlowOptions

    def __init__(self, options: StarFlowOptions, context: ModelContext) -> None:
        super().__init__(options, context)
        self.noise_std = options.noise_std or 0.0

    def sample(self, labels: Tensor | None, shape: Sequence[int], guidance: float, random: Random) -> Tensor:
        noisy_latents = super().sample(labels, shape, guidance, random)
        return self.remove_noise(noisy_latents, labels)

    def sampler_facts(self) -> SamplerFacts:
        name, passes = super().sampler_facts()
        if self.options.denoise != "score":
            return SamplerFacts(name, passes)
        return SamplerFacts(f"{name}, denoised", None if passes is None else passes + 1)

    def remove_noise(self, noisy_latents: Tensor, labels: Tensor | None) -> Tensor:
        return self.denoise(noisy_latents, labels) if self.options.denoise == "score" else noisy_latents

    def denoise(self, noisy_latents: Tensor, labels: Tensor | None) -> Tensor:
        """Return z~ + sigma^2 grad log p(z~ given labels) at latents z~ (B, C, h, w): one pass forward and back."""
        # Autocast keeps the weights that it cast; those cast in inference mode take no part in gradients (torch 2.7).
        torch.clear_autocast_cache()
        with torch.inference_mode(False), torch.enable_grad():
            position = noisy_latents.detach().clone().requires_grad_()
            (score,) = torch.autograd.grad(self.log_prob(position, labels).sum(), position)
        return noisy_latents + self.noise_std**2 * score
