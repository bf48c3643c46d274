"""STARFlow: the flow on latents of a frozen encoder plus noise, and samples that are denoised again.

Training: maximum likelihood of z~ = z + sigma eps. Sampling: z~ from the flow, then Tweedie's formula with
the flow's own density, z = z~ + sigma^2 grad log p(z~), which is E[z given z~] if the flow is exact;
or a decoder that was fine-tuned on noisy latents takes z~ as it is.
Reference: STARFlow, arXiv:2506.06276; TarFlow, arXiv:2412.06329, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from simflow_plugin.contracts import ModelContext, SamplerFacts
from simflow_plugin.models.simflow import SimFlow, SimFlowOptions
from simflow_plugin.randomness import Random
from simflow_plugin.registry import MODELS

DEFAULT_NOISE_STD = 0.3
"""What STARFlow trains its 256x256 models with, in units of the normalised latents."""


class StarFlowOptions(SimFlowOptions):
    """Options of `model: starflow`."""

    denoise: Literal["score", "decoder", "none"] = Field(
        default="score",
        description="score: by the flow's own score. decoder: the posterior's fixed std is the noise, and "
        "the decoder, trained on it (autoencoder.trainable: decoder), removes it. none: samples stay noisy.",
    )
    noise_std: float | None = Field(
        default=None, gt=0, description="sigma; null: 0.3, or the posterior's own with denoise: decoder"
    )

    @model_validator(mode="before")
    @classmethod
    def _noise_has_one_source(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        if values.get("denoise") != "decoder":
            std = values.get("noise_std")
            return {**values, "noise_std": DEFAULT_NOISE_STD if std is None else std}
        if values.get("noise_std") is not None:
            raise ValueError(
                "noise_std has no effect with denoise: decoder, where the posterior's fixed std is the noise "
                "that flow and decoder both see; set that, and noise_std: null"
            )
        return values


@MODELS.register("starflow")
class StarFlow(SimFlow):
    """SimFlow's flow as STARFlow trains it: latents noised, encoder left alone, samples denoised.

    `log_prob` is the density of noised latents.

    Args:
        options: of the model.
        context: shape of the latents, number of classes, alignment (of the flow alone: REPA).
    """

    Options = StarFlowOptions
    options: StarFlowOptions
    coupled_terms: ClassVar[frozenset[str]] = frozenset()

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
        """Return z~ + sigma^2 grad log p(z~ given labels), (B, C, h, w): one pass forward and back.

        Args:
            noisy_latents: (B, C, h, w), z~.
            labels: (B,) int64, or None.
        """
        with torch.inference_mode(False), torch.enable_grad():
            position = noisy_latents.detach().clone().requires_grad_()
            (score,) = torch.autograd.grad(self.log_prob(position, labels).sum(), position)
        return noisy_latents + self.noise_std**2 * score
