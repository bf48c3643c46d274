"""Constructor arguments of other codebases: mapped to ours, ignored where nothing depends on them, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import Field, ValidationError, model_validator

from simflow_plugin.errors import ConfigError
from simflow_plugin.flow import FlowConfig
from simflow_plugin.options import Options, did_you_mean

A = TypeVar("A", bound="PeerArguments")


class PeerArguments(Options):
    """Arguments of a peer's constructor: the fields are those that map to ours, with the peer's defaults."""

    peer: ClassVar[str]
    """For messages."""
    ignored: ClassVar[frozenset[str]] = frozenset()
    """Names whose value changes nothing of what the network computes."""
    refused: ClassVar[Mapping[str, str]] = {}
    """Name -> why any value that switches it on is not supported."""

    @classmethod
    def parse(cls: type[A], config: Mapping[str, Any]) -> A:
        """Return the arguments that map, checked.

        Raises:
            ConfigError: for an unknown, unsupported, missing or malformed argument; names it.
        """
        if "arguments" in config:
            required = [name for name, field in cls.model_fields.items() if field.is_required()]
            raise ConfigError(
                f"{cls.peer}: `arguments`: this looks like a training configuration of {cls.peer}; write the "
                f"constructor arguments of its `Model` as one mapping: {', '.join(required)}, ..."
            )
        mapped = {}
        for name, value in config.items():
            if name in cls.model_fields:
                mapped[name] = value
            elif name in cls.refused:
                if value not in (None, 0, False, "none"):
                    raise ConfigError(
                        f"{cls.peer}: `{name}`: {value!r} is not supported: {cls.refused[name]}"
                    )
            elif name not in cls.ignored:
                known = {*cls.model_fields, *cls.ignored, *cls.refused}
                raise ConfigError(f"{cls.peer}: unknown argument `{name}`.{did_you_mean(str(name), known)}")
        try:
            return cls.model_validate(mapped)
        except ValidationError as error:
            raise ConfigError(f"{cls.peer}: {describe(error)}") from error


class FlowArguments(PeerArguments):
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

    def to_config(self, **values: Any) -> FlowConfig:
        """Return our configuration of the flow: `values` beside what both peers have.

        Raises:
            ConfigError: if the values clash, such as a head that does not divide the width.
        """
        side = self.img_size // self.patch_size
        try:
            return FlowConfig(
                width=self.channels,
                patch_size=self.patch_size,
                token_dim=self.in_channels * self.patch_size**2,
                grid_size=(side, side),
                **values,
            )
        except ValidationError as error:
            raise ConfigError(f"{self.peer}: {describe(error)}") from error


def describe(error: ValidationError) -> str:
    """Return 'key: what is wrong, found value' for every error, on one line."""
    lines = []
    for entry in error.errors():
        where = ".".join(str(part) for part in entry["loc"])
        found = "" if entry["type"] == "missing" else f", found {entry['input']!r}"
        message = entry["msg"].removeprefix("Value error, ")
        lines.append(f"`{where}`: {message}{found}" if where else message)
    return "; ".join(lines)
