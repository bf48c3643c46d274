"""Options of the models that are flows: simflow and starflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from simflow_plugin.contexts import ModelContext, ModelFacts
from simflow_plugin.errors import ConfigError
from simflow_plugin.flow.architecture import FlowArchitecture, FlowConfig
from simflow_plugin.flow.guidance_options import GuidanceContext
from simflow_plugin.flow.sampling.methods import METHODS, parse_methods
from simflow_plugin.options import Choices, Options
from simflow_plugin.registry import GUIDANCE, MODELS, Part


class FlowSampling(Options):
    """Inversion of the flow."""

    method: Annotated[str | dict[str, Any] | list[str | dict[str, Any]], Choices(METHODS)] = Field(
        "cached",
        description="naive, cached, jacobi or auto; or a mapping with a name and the method's options; or a list of "
        "these, one per block in training order",
    )
    guidance_rule: Annotated[Part, GUIDANCE] = Field(
        Part(name="starflow"), description="a name, or a mapping with a name and the rule's options"
    )


class SimFlowOptions(Options):
    """Options of `model: simflow`."""

    flow: FlowArchitecture = Field(default_factory=lambda: FlowArchitecture.model_validate({}))
    sampling: FlowSampling = Field(default_factory=lambda: FlowSampling.model_validate({}))

    def check(self, context: ModelContext) -> None:
        config = FlowConfig.for_latents(self.flow, context.latent_shape)
        deep_layers = self.flow.layers_per_block[-1]
        if context.alignment is not None and context.alignment.layer > deep_layers:
            raise ConfigError(
                f"alignment.layer {context.alignment.layer} is beyond the deep block's {deep_layers} layers "
                f"(model.flow.layers_per_block {list(self.flow.layers_per_block)})."
            )
        if context.guidance > 0 and self.flow.class_dropout == 0:
            raise ConfigError(
                f"sampling.guidance {context.guidance} needs an unconditional model, but model.flow.class_dropout is "
                "0. Set model.flow.class_dropout (0.1, say) or sampling.guidance: 0."
            )
        self.sampling.guidance_rule.check_options(GUIDANCE, GuidanceContext(config.num_blocks))
        parse_methods(self.sampling.method, config.num_blocks)


DEFAULT_NOISE_STD = 0.3
"""Noise that STARFlow trains its 256x256 models with, in units of the normalised latents."""


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


@MODELS.declare("simflow", "simflow_plugin.models.simflow")
class SimFlowFacts(ModelFacts):
    """Facts of `model: simflow`."""

    Options: ClassVar[type[Options]] = SimFlowOptions
    coupled_terms: ClassVar[frozenset[str]] = frozenset({"nll", "alignment", "intermediate"})
    supports_alignment = True
    supports_autoguidance = True


@MODELS.declare("starflow", "simflow_plugin.models.starflow")
class StarFlowFacts(SimFlowFacts):
    """Facts of `model: starflow`: it detaches the latents."""

    Options: ClassVar[type[Options]] = StarFlowOptions
    coupled_terms: ClassVar[frozenset[str]] = frozenset()
