"""Options of the `kl` autoencoder, and the architecture that they and pretrained weights resolve to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from simflow_plugin.autoencoders.architecture import (
    DEFAULT_WIDTHS,
    NAMED_ARCHITECTURES,
    Architecture,
    default_norm_groups,
)
from simflow_plugin.contexts import AutoencoderFacts, DataContext, PosteriorContext
from simflow_plugin.errors import ConfigError, WeightsError
from simflow_plugin.local_paths import LocalPathOrName
from simflow_plugin.options import Choices, Options, Size, did_you_mean
from simflow_plugin.registry import AUTOENCODERS, POSTERIORS, Part

if TYPE_CHECKING:
    from simflow_plugin.autoencoders.network_weights import AutoencoderWeights

Numbers = float | list[float]
DEFAULT_POSTERIOR = "fixed"
FROM_FILES = ("pretrained", "pretrained_format", "subfolder", "scale", "shift")
"""Options that need a file, or values to check; none of them changes a shape."""


def _with_name(value: Any) -> Any:
    """Complete a mapping without a name: it is `fixed`, or what the older key `kind` names.

    Beside `kind` null stood for an option that was not given.
    """
    if not isinstance(value, dict) or "name" in value:
        return value
    if "kind" not in value:
        return {"name": DEFAULT_POSTERIOR, **value}
    given = {key: option for key, option in value.items() if option is not None}
    return {"name": given.pop("kind"), **given}


class KLOptions(Options):
    """Options of the `kl` autoencoder. The network's own ones may stay unset when `pretrained` is given."""

    posterior: Annotated[Part, BeforeValidator(_with_name), POSTERIORS] = Field(
        Part(name=DEFAULT_POSTERIOR),
        description="q(z given x), a name or a mapping with a name: `fixed`, `fixed_layernorm`, `learnable`, "
        "`learnable_noise`, or another package's",
    )
    architecture: Annotated[str | None, Choices(NAMED_ARCHITECTURES)] = Field(
        None, description="a named one (f16d64): fills in the numbers of the network; what is written wins."
    )
    factor: Size | None = Field(None, description="pixels per latent pixel, a power of two; default 8.")
    latent_channels: Size | None = Field(None, description="C; default 4.")
    widths: list[Size] | None = Field(
        None, description="channels by level, finest first, log2(factor) + 1 of them."
    )
    layers_per_block: Size | None = Field(None, description="residual layers by level; default 2.")
    norm_num_groups: Size | None = Field(None, description="groups of the group norms; default by widths.")
    uses_mid_attention: bool | None = Field(
        None, description="attention at the coarsest level; default true."
    )
    attention_levels: list[int] | None = Field(
        None, description="levels with attention, 0 = finest; default none."
    )
    uses_quant_conv: bool | None = Field(
        None, description="1x1 convolutions around the latent; default false."
    )
    pretrained: LocalPathOrName | None = Field(
        None, description="a diffusers folder, a hub name, or a checkpoint file."
    )
    pretrained_format: Literal["auto", "diffusers", "ldm", "simflow"] = Field(
        "auto", description="layout of the pretrained weights; `auto` goes by the names of the tensors."
    )
    subfolder: str | None = Field(
        None, description="of `pretrained`, when it is a folder or hub name (`vae`)."
    )
    trainable: Literal["full", "decoder", "none"] = Field(
        "full", description="what the optimiser may change."
    )
    scale: Numbers | None = Field(
        None, description="latents = (raw - shift) * scale, > 0, one number or one per channel; default from "
        "`pretrained` (its config.json, latents-stats or scale_factor), else 1, with a warning."
    )  # fmt: skip
    shift: Numbers | None = Field(None, description="see scale; default from `pretrained`, else 0.")

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        name = values.get("architecture") if isinstance(values, Mapping) else None
        if name is None:
            return values
        if name not in NAMED_ARCHITECTURES:
            raise ValueError(f"architecture: unknown `{name}`.{did_you_mean(str(name), NAMED_ARCHITECTURES)}")
        return {**NAMED_ARCHITECTURES[name], **values}

    def resolved(self) -> KLOptions:
        """Return the options with the numbers of the network, which are not known here where weights decide them.

        Raises:
            ConfigError: if options clash.
        """
        if self.pretrained is not None:
            return self.model_copy()
        values = {"scale": 1.0, "shift": 0.0, **architecture_from_options(self).as_options()}
        given = self.model_dump(include={"scale", "shift"}, exclude_none=True)
        return self.model_copy(update={**values, **given})

    def check(self, context: DataContext) -> None:
        channels = self.latent_channels
        if self.pretrained is None:
            channels = resolve_architecture(self)[0].latent_channels
        if channels is not None:
            factory = POSTERIORS.facts(self.posterior.name)
            self.posterior.options_of(factory).check(PosteriorContext(channels))


def resolve_architecture(options: KLOptions) -> tuple[Architecture, AutoencoderWeights | None]:
    """Return the architecture, from the options or from pretrained weights, and those weights.

    Raises:
        ConfigError: if options clash.
        WeightsError: if pretrained weights are missing, torn, or not of the shape that the options ask for.
    """
    if options.pretrained is None:
        if options.pretrained_format != "auto" or options.subfolder is not None:
            raise ConfigError(
                "pretrained_format and subfolder have no effect without `pretrained`: remove them"
            )
        return architecture_from_options(options), None
    from simflow_plugin.autoencoders.pretrained import load_pretrained

    architecture, weights = load_pretrained(
        options.pretrained, options.subfolder, options.pretrained_format, options.norm_num_groups
    )
    for name, found in architecture.as_options().items():
        asked = getattr(options, name)
        if asked is not None and asked != found:
            raise WeightsError(
                f"{weights.source}: its {name} is {found}, but the option {name} is {asked}; leave "
                "the option out, or name other weights"
            )
    return architecture, weights


def architecture_from_options(options: KLOptions) -> Architecture:
    """Return the architecture of a network from scratch.

    Raises:
        ConfigError: if factor is not a power of two, or does not fit widths.
    """
    factor = options.factor
    if factor is None:
        factor = 8 if options.widths is None else 2 ** (len(options.widths) - 1)
    if factor & (factor - 1):
        raise ConfigError(f"factor: {factor} is not a power of two; choose one of 2, 4, 8, 16")
    if options.widths is None and factor not in DEFAULT_WIDTHS:
        raise ConfigError(
            f"factor: there are no default widths for {factor}; give `widths`, finest level first"
        )
    widths = tuple(options.widths or DEFAULT_WIDTHS[factor])
    if 2 ** (len(widths) - 1) != factor:
        raise ConfigError(
            f"widths: {len(widths)} levels {list(widths)} make factor {2 ** (len(widths) - 1)}, but "
            f"factor is {factor}; give {factor.bit_length()} widths, or leave one of the two out"
        )
    names = {field.name for field in fields(Architecture)}
    given = {"latent_channels": 4, **options.model_dump(include=names, exclude_none=True)}
    groups = given.get("norm_num_groups", default_norm_groups(widths))
    levels = tuple(given.get("attention_levels", ()))
    return Architecture(**{**given, "widths": widths, "norm_num_groups": groups, "attention_levels": levels})


@AUTOENCODERS.declare("kl", "simflow_plugin.autoencoders.kl")
class KLFacts(AutoencoderFacts):
    """Facts of the `kl` autoencoder."""

    Options: ClassVar[type[Options]] = KLOptions

    @classmethod
    def geometry(cls, options: KLOptions) -> tuple[int, int] | None:
        """Return (factor, latent_channels), or None where only the pretrained weights tell."""
        if options.pretrained is not None:  # what is stated is compared with the weights when they are read
            factor, channels = options.factor, options.latent_channels
            return None if factor is None or channels is None else (factor, channels)
        architecture, _ = resolve_architecture(options)
        return architecture.factor, architecture.latent_channels

    @classmethod
    def trained_part(cls, options: KLOptions) -> str:
        return options.trainable

    @classmethod
    def learns_variance(cls, options: KLOptions) -> bool:
        return POSTERIORS.facts(options.posterior.name).learns_variance

    @classmethod
    def shape_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        stated = options.get("factor"), options.get("latent_channels")
        if options.get("pretrained") is not None and None in stated:
            raise ConfigError(
                f"autoencoder: the shape of {options['pretrained']} is known to that file only. Write down `factor` "
                "and `latent_channels` (and `widths`, if they are not the usual ones) to plan without it."
            )
        return {key: value for key, value in options.items() if key not in FROM_FILES}
