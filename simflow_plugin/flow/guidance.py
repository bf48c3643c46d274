"""Guidance rules by name: guided affine parameters from conditional and unconditional ones, and where they apply.

`starflow` is STARFlow's, `linear` TarFlow's (in log sigma), `linear_sigma` iTARFlow's. SimFlow reports a "revised" rule
of its own that is in no public text, so none here has that name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from pydantic import ValidationError
from torch import Tensor

from simflow_plugin.errors import ConfigError, ShapeError
from simflow_plugin.flow.affine import Affine
from simflow_plugin.flow.guidance_options import GuidanceContext, GuidanceOptions, SigmaGuidanceOptions
from simflow_plugin.registry import GUIDANCE, Part

FLOOR = 1e-3
"""Of sigma / sigma_c in `linear_sigma`."""
LARGEST_LOG_RATIO = 60.0
"""Of sigma_u / sigma_c: its exponential is finite, so that a weight of 0 gives back the conditional scale."""


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

    def combine_halves(self, both: Affine, weight: Tensor) -> Affine:
        """Return guided parameters (B, n, D) from 2 B rows, the conditional ones first; weight (n, 1) or (B, n, 1)."""
        halves = zip(*(part.chunk(2, dim=0) for part in both), strict=True)
        conditional, unconditional = (Affine(*half) for half in halves)
        return self.combine(conditional, unconditional, weight)

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


@GUIDANCE.register("starflow")
class StarflowGuidance(GuidanceRule):
    """STARFlow's: the Gaussian p_c^(1 + w) / p_u^w, with its variance ratio clipped to stay a Gaussian.

    With r = min(s_c / s_u, 1)^2: s^2 = s_c^2 / (1 + w - w r) and mu = ((1 + w) mu_c - w r mu_u) / (1 + w - w r).
    The denominator is at least 1, so s is positive and finite for every w >= 0.
    Reference: STARFlow, arXiv:2506.06276.
    """

    def combine(self, conditional: Affine, unconditional: Affine, weight: Tensor) -> Affine:
        ratio = (2 * (conditional.log_scale - unconditional.log_scale).clamp(max=0.0)).exp()  # r
        excess = weight * (1 - ratio)
        log_scale = conditional.log_scale - 0.5 * torch.log1p(excess)
        # Equal to the formula above, but without the difference of two large products.
        step = weight * ratio / (1 + excess)
        return Affine(conditional.shift + step * (conditional.shift - unconditional.shift), log_scale)


@GUIDANCE.register("linear")
class LinearGuidance(GuidanceRule):
    """TarFlow's: extrapolate shift and log-scale, mu = mu_c + w (mu_c - mu_u), log s likewise.

    MIMFlow uses it in the first generated block only: `first_block_only: true`.
    Reference: TarFlow, arXiv:2412.06329.
    """

    def combine(self, conditional: Affine, unconditional: Affine, weight: Tensor) -> Affine:
        halves = zip(conditional, unconditional, strict=True)
        return Affine(*(with_label + weight * (with_label - without) for with_label, without in halves))


@GUIDANCE.register("linear_sigma")
class SigmaGuidance(GuidanceRule):
    """iTARFlow's, linear in the scale: sigma = sigma_c + w (sigma_c - sigma_u), mu = mu_c + w (mu_c - mu_u).

    TarFlow's `linear` does so in log sigma, where the result is always positive; here it is not where sigma_u is more
    than (1 + 1 / w) sigma_c, so sigma stays above `FLOOR` sigma_c. Guidance of the first generated block only is the
    paper's. Reference: iTARFlow, arXiv:2604.20041.
    """

    Options = SigmaGuidanceOptions

    def combine(self, conditional: Affine, unconditional: Affine, weight: Tensor) -> Affine:
        log_ratio = (unconditional.log_scale - conditional.log_scale).clamp(max=LARGEST_LOG_RATIO)
        growth = 1 - weight * torch.expm1(log_ratio)  # sigma / sigma_c
        return Affine(
            conditional.shift + weight * (conditional.shift - unconditional.shift),
            conditional.log_scale + growth.clamp(min=FLOOR).log(),
        )


@dataclass(frozen=True)
class GuidanceWeights:
    """Guidance of one block: `rule`, and `weights` (T, 1) of its targets in generation order."""

    rule: GuidanceRule
    weights: Tensor

    def combine(self, both: Affine, first: int, stop: int) -> Affine:
        """Return guided parameters (B, n, D) of targets first : stop, from 2 B rows, conditional first."""
        return self.rule.combine_halves(both, self.weights[first:stop])

    def combine_at(self, both: Affine, target: Tensor) -> Affine:
        """Return guided parameters (B, 1, D) of the target whose number `target` (1,) int64 holds."""
        return self.rule.combine_halves(both, self.weights.index_select(0, target))


def build_guidance(rule: str | Mapping | GuidanceRule, context: GuidanceContext) -> GuidanceRule:
    """Return a guidance rule from its name, or from a mapping with `name` and options.

    Raises:
        RegistryError: for an unknown name.
        ConfigError: for an unknown or invalid option, or a mapping without `name`.
    """
    if isinstance(rule, GuidanceRule):
        return rule
    try:
        part = Part.model_validate(rule if isinstance(rule, str) else dict(rule))
    except ValidationError as error:
        known = ", ".join(GUIDANCE.names())
        raise ConfigError(
            f"guidance_rule: found {rule!r}, expected a name, or a mapping with `name` and options. Known: {known}."
        ) from error
    return part.build(GUIDANCE, context)


def check_guidance(guidance: float) -> None:
    """Raise ShapeError unless the weight is a number >= 0 that float32 can hold."""
    is_number = isinstance(guidance, int | float)
    if not (is_number and 0 <= guidance <= torch.finfo(torch.float32).max):
        raise ShapeError(f"guidance: found {guidance}, expected a finite weight >= 0 (0 is no guidance)")
