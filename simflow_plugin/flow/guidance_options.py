"""Options of the guidance rules: the tokens and blocks to which guidance applies."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field, field_validator, model_validator

from simflow_plugin.errors import ConfigError
from simflow_plugin.options import Options
from simflow_plugin.registry import GUIDANCE


@GUIDANCE.declare("linear", "simflow_plugin.flow.guidance")
@GUIDANCE.declare("starflow", "simflow_plugin.flow.guidance")
class GuidanceOptions(Options):
    """Tokens and blocks to which guidance applies; shared by all rules."""

    annealed: bool = Field(
        False, description="Grow the weight from 0 at the first generated token to w at the last."
    )
    token_interval: tuple[float, float] = Field(
        (0.0, 1.0),
        description="Part of the sequence, in generation order, that is guided; fractions [from, to).",
    )
    block_interval: tuple[int, int] | None = Field(
        None,
        description="First and last guided block, from 1 in training order; all conditional blocks if None.",
    )

    first_block_only: bool = Field(
        False,
        description="Guide the first generated block alone (the deep one), as iTARFlow and MIMFlow do.",
    )

    @model_validator(mode="after")
    def _blocks_are_said_once(self) -> GuidanceOptions:
        if self.first_block_only and self.block_interval is not None:
            raise ValueError("block_interval has no effect with first_block_only: give one of the two")
        return self

    @field_validator("token_interval")
    @classmethod
    def _fractions(cls, interval: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= interval[0] <= interval[1] <= 1:
            raise ValueError(f"expected 0 <= from <= to <= 1, found {list(interval)}")
        return interval

    @field_validator("block_interval")
    @classmethod
    def _blocks(cls, interval: tuple[int, int] | None) -> tuple[int, int] | None:
        if interval is not None and not 1 <= interval[0] <= interval[1]:
            raise ValueError(f"expected 1 <= first <= last, found {list(interval)}")
        return interval

    def check(self, context: GuidanceContext) -> None:
        if self.block_interval is not None and self.block_interval[1] > context.num_blocks:
            raise ConfigError(
                f"guidance_rule.block_interval: found {list(self.block_interval)}, but the flow has "
                f"{context.num_blocks} blocks"
            )


@dataclass(frozen=True)
class GuidanceContext:
    """Context of a guidance rule: `num_blocks`, the flow's number of blocks."""

    num_blocks: int


@GUIDANCE.declare("linear_sigma", "simflow_plugin.flow.guidance")
class SigmaGuidanceOptions(GuidanceOptions):
    """Options of `linear_sigma`."""

    first_block_only: bool = Field(
        True, description="Guide the first generated block alone (the deep one), as the paper does."
    )
