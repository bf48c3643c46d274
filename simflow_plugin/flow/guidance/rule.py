"""Base of guidance rules, and their weight at every token of every block: annealing and intervals."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from pydantic import ValidationError
from torch import Tensor

from simflow_plugin.errors import ConfigError, ShapeError
from simflow_plugin.flow.affine import Affine
from simflow_plugin.flow.guidance.options import GuidanceContext, GuidanceOptions
from simflow_plugin.registry import GUIDANCE


class GuidanceRule(ABC):
    """Combines the affine parameters of the conditional and the unconditional model.

    Raises:
        ConfigError: if `block_interval` ends after the last block.
    """

    Options: type[GuidanceOptions] = GuidanceOptions

    def __init__(self, options: GuidanceOptions, context: GuidanceContext) -> None:
        options.check(context)
        self.options = options
        self.num_blocks = context.num_blocks

    @abstractmethod
    def combine(self, conditional: Affine, unconditional: Affine, weight: Tensor) -> Affine:
        """Return guided parameters.

        Args:
            conditional: (B, n, D).
            unconditional: (B, n, D).
            weight: (n, 1), w >= 0 of each token; where w = 0 the conditional parameters come back.
        """

    def weights(self, guidance: float, block: int, num_tokens: int, like: Tensor) -> Tensor | None:
        """Return w of every target of a block, (T, 1) in generation order, or None where all are zero.

        Args:
            guidance: w >= 0.
            block: from 0, in training order.
            num_tokens: T.
            like: its device and dtype are the result's.
        """
        if guidance == 0 or not self._reaches(block):
            return None
        position = torch.arange(num_tokens)
        weights = torch.full((num_tokens,), float(guidance), dtype=torch.float64)
        if self.options.annealed:
            weights = weights * position / max(num_tokens - 1, 1)
        first, last = (fraction * num_tokens for fraction in self.options.token_interval)
        weights[(position < first) | (position >= last)] = 0.0
        if not bool(weights.any()):
            return None
        return weights[:, None].to(device=like.device, dtype=like.dtype)

    def _reaches(self, block: int) -> bool:
        """Return whether a block, from 0 in training order, is guided."""
        if self.options.first_block_only:
            return block == self.num_blocks - 1
        first, last = self.options.block_interval or (1, self.num_blocks)
        return first <= block + 1 <= last


@dataclass(frozen=True)
class GuidanceWeights:
    """Guidance of one block: `rule`, and `weights` (T, 1) of its targets in generation order."""

    rule: GuidanceRule
    weights: Tensor

    def combine(self, both: Affine, first: int, stop: int) -> Affine:
        """Return guided parameters (B, n, D) of targets first : stop, from 2 B rows, conditional first."""
        return self.combine_with(both, self.weights[first:stop])

    def combine_at(self, both: Affine, target: Tensor) -> Affine:
        """Return guided parameters (B, 1, D) of the target whose number `target` (1,) int64 holds."""
        return self.combine_with(both, self.weights.index_select(0, target))

    def combine_with(self, both: Affine, weights: Tensor) -> Affine:
        """Return guided parameters (B, n, D) with the weights (n, 1) of these targets."""
        halves = [part.chunk(2, dim=0) for part in both]
        conditional, unconditional = (
            Affine(shift, log_scale) for shift, log_scale in zip(*halves, strict=True)
        )
        return self.rule.combine(conditional, unconditional, weights)


def build_guidance(rule: str | Mapping | GuidanceRule, context: GuidanceContext) -> GuidanceRule:
    """Return a guidance rule from its name, or from a mapping with `name` and options.

    Raises:
        RegistryError: for an unknown name.
        ConfigError: for an unknown or invalid option, or a mapping without `name`.
    """
    if isinstance(rule, GuidanceRule):
        return rule
    values = {"name": rule} if isinstance(rule, str) else dict(rule)
    if "name" not in values:
        raise ConfigError(
            f"guidance_rule: `name` is missing in {values}. Known: {', '.join(GUIDANCE.names())}."
        )
    name = str(values.pop("name"))
    factory = GUIDANCE.get(name)
    try:
        options = factory.Options(**values)
    except ValidationError as error:
        raise ConfigError(f"guidance_rule: {error}") from error
    return GUIDANCE.build(name, options, context)


def check_guidance(guidance: float) -> None:
    """Raise ShapeError unless the weight is a number >= 0 that float32 can hold."""
    is_number = isinstance(guidance, int | float)
    if not (is_number and 0 <= guidance <= torch.finfo(torch.float32).max):
        raise ShapeError(f"guidance: found {guidance}, expected a finite weight >= 0 (0 is no guidance)")
