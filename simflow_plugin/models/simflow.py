"""SimFlow: an exact-likelihood flow of latents, trained together with the autoencoder that makes them.

The model is the flow; what makes it SimFlow is that the gradient of its likelihood reaches the encoder, which a
fixed posterior variance keeps stable (arXiv:2512.04084).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from simflow_plugin.alignment.head import AlignmentHead
from simflow_plugin.contracts import GenerativeModel, ModelContext, SamplerFacts
from simflow_plugin.flow import (
    FlowConfig,
    TransformerFlow,
    patchify,
    standard_normal_log_prob,
    unpatchify,
)
from simflow_plugin.flow.conditioning import drop_at_random
from simflow_plugin.flow.guidance import GuidanceContext, GuidanceRule
from simflow_plugin.flow.input_checks import check_guide
from simflow_plugin.flow.sampling.methods import Auto, Jacobi, parse_methods
from simflow_plugin.guided_by_weaker import with_guide
from simflow_plugin.models.flow_options import FlowSampling as FlowSampling
from simflow_plugin.models.flow_options import SimFlowFacts, SimFlowOptions
from simflow_plugin.randomness import Random
from simflow_plugin.registry import GUIDANCE, MODELS


class LikelihoodOutput(NamedTuple):
    """`log_prob` (B,), nats; `noise` (B, T, D); `hidden` and `regularization` as in `FlowOutput`, or None."""

    log_prob: Tensor
    noise: Tensor
    hidden: Tensor | None
    regularization: Tensor | None = None


@MODELS.register("simflow")
class SimFlow(SimFlowFacts, GenerativeModel):
    """Transformer autoregressive flow p(z given y) on the latent grid.

    Raises:
        ConfigError: if the latent grid is not divisible by the patch size.
    """

    def __init__(self, options: SimFlowOptions, context: ModelContext) -> None:
        super().__init__()
        self.options = options
        self.latent_shape = context.latent_shape
        config = FlowConfig.for_latents(options.flow, context.latent_shape, num_classes=context.num_classes)
        self.grid_size = config.grid_size
        self.flow = TransformerFlow(config)
        rule = options.sampling.guidance_rule
        self.guidance_rule: GuidanceRule = rule.build(GUIDANCE, GuidanceContext(config.num_blocks))
        self.supports_guidance = context.num_classes is not None and options.flow.class_dropout > 0
        self.alignment_layer = context.alignment.layer if context.alignment is not None else None
        self.alignment = (
            AlignmentHead(config.width, context.alignment) if context.alignment is not None else None
        )

    def training_losses(
        self, latents: Tensor, labels: Tensor | None, features: Tensor | None, random: Random
    ) -> dict[str, Tensor]:
        layer = self.alignment_layer if features is not None else None
        # A latent that is not finite is the loop's to count and skip, by the name of the term that it reaches.
        output = self.likelihood(latents, labels, random, layer, checks_values=False)
        terms = {"nll": -output.log_prob.mean() / latents[0].numel()}
        if output.regularization is not None:
            terms["intermediate"] = output.regularization
        if self.alignment is not None and features is not None:
            assert output.hidden is not None
            terms["alignment"] = self.alignment(output.hidden, self.grid_size, features)
        return terms

    def likelihood(
        self,
        latents: Tensor,
        labels: Tensor | None,
        random: Random,
        hidden_layer: int | None = None,
        checks_values: bool = True,
    ) -> LikelihoodOutput:
        """Push latents to noise as in training: with the model's own noise, some labels dropped.

        Args:
            latents: (B, C, h, w), normalised.
            labels: (B,) int64, `NO_LABEL` for none; or None.
            random: named draws: `label_dropout` (B,) uniform, and `latent_noise` normal where noise is added.
            hidden_layer: of the deep block, counted from 1, whose tokens are returned; None returns none.
            checks_values: refuse latents that are not finite.
        """
        labels = drop_at_random(self._known(labels), self.options.flow.class_dropout, random)
        tokens = self.tokens(self.add_noise(latents, random))
        output = self.flow(tokens, labels, hidden_layer=hidden_layer, checks_values=checks_values)
        log_prob = standard_normal_log_prob(output.noise) + output.logdet
        return LikelihoodOutput(log_prob, output.noise, output.hidden, output.regularization)

    def add_noise(self, latents: Tensor, random: Random) -> Tensor:
        """Return latents (B, C, h, w) plus noise of std `noise_std`, drawn as `latent_noise`."""
        if self.noise_std == 0:
            return latents
        return latents + self.noise_std * random.normal("latent_noise", latents.shape, latents.device)

    @torch.no_grad()
    def sample(self, labels: Tensor | None, shape: Sequence[int], guidance: float, random: Random) -> Tensor:
        channels, height, width = self.latent_shape
        grid_noise = random.normal("latent", (shape[0], channels, height, width), self.device)
        tokens = self.flow.inverse(
            self.tokens(grid_noise),
            self._known(labels),
            guidance=guidance,
            guidance_rule=self.guidance_rule,
            method=self.options.sampling.method,
            guide=self.guide.flow if isinstance(self.guide, SimFlow) else None,
        )
        return self.latents(tokens)

    def guided_by(self, weaker: GenerativeModel) -> SimFlow:
        """Return this model, its weights shared, with `weaker` in place of the unconditional half of its guidance.

        Raises:
            ConfigError: if that is no model of the same kind, on the same tokens, noise and classes.
        """
        if isinstance(weaker, SimFlow):
            check_guide(weaker.flow.config, self.flow.config)
        return with_guide(self, weaker)

    def process_facts(self) -> dict[str, object]:
        """Return what two models must share for their predictions to be combined, by name."""
        return {"noise_std": self.noise_std}

    def log_prob(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        return self.flow.log_prob(self.tokens(latents), self._known(labels))

    def sampler_facts(self) -> SamplerFacts:
        config = self.flow.config
        methods = parse_methods(self.options.sampling.method, config.num_blocks)
        names = "/".join(dict.fromkeys(method.name for method in methods))
        if any(isinstance(method, Jacobi | Auto) for method in methods):  # it iterates until it converges
            return SamplerFacts(names, None)
        # A pass a token and block; an output shift leaves the first token of a block as it is.
        num_steps = config.num_tokens - (0 if config.start_token else 1)
        return SamplerFacts(names, config.num_blocks * num_steps)

    def token_flow(self) -> TransformerFlow:
        return self.flow

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
