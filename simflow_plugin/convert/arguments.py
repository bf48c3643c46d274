"""Constructor arguments of other codebases: mapped to ours, ignored where nothing depends on them, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import Field, ValidationError, model_validator

from simflow_plugin.errors import ConfigError
from simflow_plugin.flow import FlowConfig
from simflow_plugin.options import Options, did_you_mean

A = TypeVar("A", bound=Options)


class FlowArguments(Options):
    """Constructor arguments that the `Model` of both peers has."""

    in_channels: int = Field(gt=0)
    img_size: int = Field(gt=0)
    patch_size: int = Field(gt=0)
    channels: int = Field(gt=0)
    num_blocks: int = Field(gt=0)

    @model_validator(mode="after")
    def _patches_fit(self) -> FlowArguments:
        if self.img_size % self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} does not divide img_size {self.img_size}")
        return self


@dataclass(frozen=True)
class PeerConstructor(Generic[A]):
    """Arguments of a peer's constructor.

    Args:
        peer: name of the peer, for messages.
        schema: the arguments that map, with the peer's defaults.
        ignored: names whose value changes nothing of what the network computes.
        refused: name -> why any value that switches it on is not supported.
    """

    peer: str
    schema: type[A]
    ignored: frozenset[str]
    refused: Mapping[str, str]

    def parse(self, config: Mapping[str, Any]) -> A:
        """Return the arguments that map, checked.

        Raises:
            ConfigError: for an unknown, unsupported, missing or malformed argument; names it.
        """
        if "arguments" in config:
            raise ConfigError(
                f"{self.peer}: `arguments`: this looks like a training configuration of {self.peer}; write the "
                f"constructor arguments of its `Model` as one mapping: {', '.join(self._required())}, ..."
            )
        mapped = {}
        for name, value in config.items():
            if name in self.schema.model_fields:
                mapped[name] = value
            elif name in self.refused:
                if value not in (None, 0, False, "none"):
                    raise ConfigError(
                        f"{self.peer}: `{name}`: {value!r} is not supported: {self.refused[name]}"
                    )
            elif name not in self.ignored:
                known = {*self.schema.model_fields, *self.ignored, *self.refused}
                raise ConfigError(f"{self.peer}: unknown argument `{name}`.{did_you_mean(str(name), known)}")
        try:
            return self.schema.model_validate(mapped)
        except ValidationError as error:
            raise ConfigError(f"{self.peer}: {describe(error)}") from error

    def _required(self) -> list[str]:
        return [name for name, field in self.schema.model_fields.items() if field.is_required()]


def make_config(peer: str, arguments: FlowArguments, **values: Any) -> FlowConfig:
    """Return our configuration of a peer's flow: `values` beside what both peers have.

    Raises:
        ConfigError: if the values clash, such as a head that does not divide the width.
    """
    side = arguments.img_size // arguments.patch_size
    try:
        return FlowConfig(
            width=arguments.channels,
            patch_size=arguments.patch_size,
            token_dim=arguments.in_channels * arguments.patch_size**2,
            grid_size=(side, side),
            **values,
        )
    except ValidationError as error:
        raise ConfigError(f"{peer}: {describe(error)}") from error


def describe(error: ValidationError) -> str:
    """Return 'key: what is wrong, found value' for every error, on one line."""
    lines = []
    for entry in error.errors():
        where = ".".join(str(part) for part in entry["loc"])
        found = "" if entry["type"] == "missing" else f", found {entry['input']!r}"
        message = entry["msg"].removeprefix("Value error, ")
        lines.append(f"`{where}`: {message}{found}" if where else message)
    return "; ".join(lines)
