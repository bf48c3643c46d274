"""Base of the diffusion models of the harness: network, label dropout, alignment, guidance."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from simflow_plugin.alignment.head import AlignmentHead
from simflow_plugin.contracts import GenerativeModel, ModelContext
from simflow_plugin.diffusion.guidance import GuidanceRule, GuidedPrediction
from simflow_plugin.diffusion.options import DiffusionFacts, DiffusionOptions, SamplingOptions
from simflow_plugin.diffusion.transformer import AdaLNTransformer
from simflow_plugin.errors import ConfigError
from simflow_plugin.flow.conditioning import drop_at_random
from simflow_plugin.guided_by_weaker import with_guide
from simflow_plugin.randomness import Random
from simflow_plugin.registry import DIFFUSION_GUIDANCE


class DiffusionModel(DiffusionFacts, GenerativeModel):
    """A denoiser of latents with an adaLN-zero transformer; children add process, loss and sampler.

    Raises:
        ConfigError: if the patch size does not divide the grid, the layer to align does not exist, or guidance is
            asked of a model that never trains without labels.
    """

    def __init__(self, options: DiffusionOptions, sampling: SamplingOptions, context: ModelContext) -> None:
        super().__init__()
        options.check(context)
        self.num_classes = context.num_classes
        self.supports_guidance = context.num_classes is not None and options.label_dropout > 0
        self.label_dropout = options.label_dropout
        self.guidance_rule: GuidanceRule = sampling.guidance_rule.build(DIFFUSION_GUIDANCE, None)
        self.autoencoder_pass = options.autoencoder_pass
        self.backbone = AdaLNTransformer(options.backbone, context.latent_shape, context.num_classes)
        self.alignment_layer = context.alignment.layer if context.alignment is not None else None
        self.alignment = (
            AlignmentHead(self.backbone.width, context.alignment) if context.alignment is not None else None
        )

    def training_losses(
        self, latents: Tensor, labels: Tensor | None, features: Tensor | None, random: Random
    ) -> dict[str, Tensor]:
        noise = random.normal("noise", latents.shape, latents.device)
        t = self.sample_times(latents.shape[0], random, latents.device)
        labels = drop_at_random(labels, self.label_dropout, random)
        return self.losses_at(latents, labels, features, t, noise)

    def autoencoder_losses(
        self, latents: Tensor, labels: Tensor | None, features: Tensor | None, random: Random
    ) -> dict[str, Tensor] | None:
        """Return the alignment in evaluation mode, at the time and noise that `training_losses` draws."""
        if self.autoencoder_pass == "training" or features is None:
            return None
        noise = random.normal("noise", latents.shape, latents.device)
        t = self.sample_times(latents.shape[0], random, latents.device)
        head = self._alignment_head()
        assert self.alignment_layer is not None
        noised, _ = self.diffuse(self.normalize_in_evaluation(latents), t, noise)
        hidden = self.backbone.hidden_tokens(noised, t, labels, self.alignment_layer)
        return {"alignment": head(hidden, self.backbone.grid_size, features)}

    @abstractmethod
    def sample_times(self, batch_size: int, random: Random, device: torch.device) -> Tensor:
        """Draw the times (B,) to train at, in the unit of the model."""

    @abstractmethod
    def diffuse(self, latents: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return normalised latents noised to time t (B,) and the target of the prediction, (B, C, h, w) each."""

    def normalize(self, latents: Tensor) -> Tensor:
        """Return latents as the network is trained on them."""
        return latents

    def normalize_in_evaluation(self, latents: Tensor) -> Tensor:
        """Return latents as the network sees them in evaluation mode, whatever mode it is in; changes no state."""
        return latents

    def losses_at(
        self, latents: Tensor, labels: Tensor | None, features: Tensor | None, t: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Return the terms of `training_losses` at times t (B,) and noise (B, C, h, w); drops no label."""
        head = None if features is None else self._alignment_head()
        noised, target = self.diffuse(self.normalize(latents), t, noise)
        output = self.backbone(noised, t, labels, None if head is None else self.alignment_layer)
        terms = {"denoising": (output.prediction.float() - target.float()).square().mean()}
        if head is not None:
            terms["alignment"] = head(output.hidden, self.backbone.grid_size, features)
        return terms

    def predict(self, latents: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """Return the network's prediction (B, C, h, w) at noised latents (B, C, h, w) and times t (B,)."""
        # Guidance and samplers add small differences of predictions: in the state's precision, not autocast's.
        return self.backbone(latents, t, labels).prediction.to(latents.dtype)

    def _alignment_head(self) -> AlignmentHead:
        if self.alignment is None:
            raise ConfigError(
                f"{type(self).__name__} was given features to align with, but it was built without "
                "alignment, so it keeps no hidden tokens. Set ModelContext.alignment, or pass no features."
            )
        return self.alignment

    def guided_by(self, weaker: GenerativeModel) -> DiffusionModel:
        """Return this model, its weights shared, with `weaker` in place of the unconditional half of its guidance.

        Both predict at the same state, in the space of normalised latents.

        Raises:
            ConfigError: if that is no model of the same kind, on the same latents and classes.
        """
        return with_guide(self, weaker)

    def process_facts(self) -> dict[str, object]:
        """Return what two models must share for their predictions to be combined, by name."""
        return {"latent shape": tuple(self.backbone.latent_shape), "num_classes": self.num_classes}

    def _guided(self, weight: float) -> GuidedPrediction:
        if isinstance(self.guide, DiffusionModel):
            return GuidedPrediction(self.guidance_rule, weight, self.guide.predict)
        if weight > 0 and not self.supports_guidance:
            raise ConfigError(
                f"guidance is {weight}, but this {type(self).__name__} was trained without label dropout or "
                "without classes, so it has no unconditional half. Use guidance 0."
            )
        return GuidedPrediction(self.guidance_rule, weight)
