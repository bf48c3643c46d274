"""SimFlow: an exact-likelihood flow of latents, trained together with the autoencoder that makes them.

The model is the flow; what makes it SimFlow is that the gradient of its likelihood reaches the encoder, which a
fixed posterior variance keeps stable (arXiv:2512.04084).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from simflow_plugin import options
from simflow_plugin.alignment.head import AlignmentHead
from simflow_plugin.contracts import GenerativeModel, ModelContext
from simflow_plugin.errors import ConfigError
from simflow_plugin.flow import (
    FlowArchitecture,
    FlowConfig,
    TransformerFlow,
    drop_labels,
    patchify,
    standard_normal_log_prob,
    unpatchify,
)
from simflow_plugin.randomness import Random
from simflow_plugin.registry import MODELS


class FlowSampling(options.Options):
    """How the flow is inverted."""

    method: str = Field("cached", description="naive, cached, jacobi or auto")
    guidance_rule: str | dict[str, Any] = Field(
        "starflow", description="a name of the guidance registry, or a mapping"
    )


class SimFlowOptions(options.Options):
    """Options of `model: simflow`."""

    flow: FlowArchitecture = Field(default_factory=lambda: FlowArchitecture.model_validate({}))
    sampling: FlowSampling = Field(default_factory=lambda: FlowSampling.model_validate({}))


@MODELS.register("simflow")
class SimFlow(GenerativeModel):
    """Transformer autoregressive flow p(z given y) on the latent grid.

    Args:
        options: of the model.
        context: shape of the latents, number of classes, alignment.
    Raises:
        ConfigError: if the latent grid is not divisible by the patch size.
    """

    Options = SimFlowOptions
    coupled_terms: ClassVar[frozenset[str]] = frozenset({"nll", "alignment", "intermediate"})
    supports_alignment = True

    def __init__(self, options: SimFlowOptions, context: ModelContext) -> None:
        super().__init__()
        self.options = options
        self.latent_shape = context.latent_shape
        config = FlowConfig.for_latents(options.flow, context.latent_shape, num_classes=context.num_classes)
        self.grid_size = config.grid_size
        self.flow = TransformerFlow(config)
        self.supports_guidance = context.num_classes is not None and options.flow.class_dropout > 0
        self.alignment_layer = context.alignment.layer if context.alignment is not None else None
        self.alignment = (
            AlignmentHead(config.width, context.alignment) if context.alignment is not None else None
        )

    @staticmethod
    def check(options: SimFlowOptions, context: ModelContext, guidance: float) -> None:
        """Refuse values that clash; called before anything is built."""
        FlowConfig.for_latents(options.flow, context.latent_shape)
        deep_layers = options.flow.layers_per_block[-1]
        if context.alignment is not None and context.alignment.layer > deep_layers:
            raise ConfigError(
                f"alignment.layer {context.alignment.layer} is beyond the deep block's {deep_layers} layers "
                f"(model.flow.layers_per_block {list(options.flow.layers_per_block)})."
            )
        if guidance > 0 and options.flow.class_dropout == 0:
            raise ConfigError(
                f"sampling.guidance {guidance} needs an unconditional model, but model.flow.class_dropout is 0. "
                "Set model.flow.class_dropout (0.1, say) or sampling.guidance: 0."
            )

    def training_losses(
        self, latents: Tensor, labels: Tensor | None, features: Tensor | None, random: Random
    ) -> dict[str, Tensor]:
        labels = self._drop_labels(labels, random, latents.device)
        layer = self.alignment_layer if features is not None else None
        # A latent that is not finite is the loop's to count and skip, by the name of the term that it reaches.
        output = self.flow(self.tokens(latents), labels, hidden_layer=layer, checks_values=False)
        log_prob = standard_normal_log_prob(output.noise) + output.logdet
        terms = {"nll": -log_prob.mean() / latents[0].numel()}
        if output.regularization is not None:
            terms["intermediate"] = output.regularization
        if self.alignment is not None and features is not None:
            terms["alignment"] = self.alignment(output.hidden, self.grid_size, features)
        return terms

    @torch.no_grad()
    def sample(self, labels: Tensor | None, shape: Sequence[int], guidance: float, random: Random) -> Tensor:
        channels, height, width = self.latent_shape
        grid_noise = random.normal("latent", (shape[0], channels, height, width), self.device)
        tokens = self.flow.inverse(
            self.tokens(grid_noise),
            self._known(labels),
            guidance=guidance,
            guidance_rule=self.options.sampling.guidance_rule,
            method=self.options.sampling.method,
        )
        return self.latents(tokens)

    def log_prob(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        return self.flow.log_prob(self.tokens(latents), self._known(labels))

    def tokens(self, latents: Tensor) -> Tensor:
        """Cut latents (B, C, h, w) into tokens (B, T, D)."""
        return patchify(latents, self.options.flow.patch_size)

    def latents(self, tokens: Tensor) -> Tensor:
        """Put tokens (B, T, D) back onto the latent grid (B, C, h, w)."""
        return unpatchify(tokens, self.grid_size, self.options.flow.patch_size)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def _known(self, labels: Tensor | None) -> Tensor | None:
        return labels if self.flow.config.num_classes is not None else None

    def _drop_labels(self, labels: Tensor | None, random: Random, device: torch.device) -> Tensor | None:
        labels = self._known(labels)
        if labels is None or self.options.flow.class_dropout == 0:
            return labels
        uniform = random.uniform("label_dropout", (labels.shape[0],), device)
        return drop_labels(labels, uniform, self.options.flow.class_dropout)
