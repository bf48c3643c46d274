"""Guidance of a prediction within an interval of time: the contract of a rule, and its use at one step of a sampler.

Outside [low, high], and at w = 0, the conditional model answers, in one pass. With autoguidance a weaker model stands
for the unconditional half. References: arXiv:2404.07724; autoguidance, arXiv:2406.02507.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from simflow_plugin.contracts import NO_LABEL
from simflow_plugin.diffusion.options import GuidanceOptions
from simflow_plugin.errors import ConfigError
from simflow_plugin.registry import DIFFUSION_GUIDANCE

Prediction = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""f(x_t (B, ...), t (B,), labels (B,) or None) -> (B, ...)."""


class GuidanceRule(ABC):
    """A combination of a conditional and an unconditional prediction; registered in `diffusion_guidance`."""

    Options: ClassVar[type[GuidanceOptions]] = GuidanceOptions

    def __init__(self, options: GuidanceOptions, context: Any = None) -> None:
        self.options = options

    @abstractmethod
    def combine(self, conditional: Tensor, unconditional: Tensor, weight: float, time: float) -> Tensor:
        """Return the guided prediction (B, ...).

        Args:
            conditional: (B, ...), of the noise or the velocity, as the model predicts it.
            unconditional: (B, ...); with autoguidance, that of a weaker model.
            weight: w > 0.
            time: where the step began, in [0, 1].
        """


@DIFFUSION_GUIDANCE.register("classifier_free")
class ClassifierFreeGuidance(GuidanceRule):
    """Classifier-free guidance: f = f_c + w (f_c - f_u); w = 0 is the conditional model.

    Reference: arXiv:2207.12598.
    """

    def combine(self, conditional: Tensor, unconditional: Tensor, weight: float, time: float) -> Tensor:
        return conditional + weight * (conditional - unconditional)


@dataclass(frozen=True)
class GuidedPrediction:
    """A rule with its weight.

    Args:
        rule: that combines the predictions.
        weight: w >= 0.
        weaker: autoguidance: a weaker model, asked with the same labels in place of the unconditional half; or None.
    Raises:
        ConfigError: if the weight is out of range.
    """

    rule: GuidanceRule
    weight: float
    weaker: Prediction | None = None

    def __post_init__(self) -> None:
        if not self.weight >= 0 or self.weight == float("inf"):
            raise ConfigError(
                f"guidance is {self.weight}, but the weight must be finite and >= 0; 0 switches it off."
            )

    def __call__(
        self, predict: Prediction, x: Tensor, t: Tensor, time: float, labels: Tensor | None
    ) -> Tensor:
        """Return the guided prediction at x (B, ...).

        Args:
            predict: the model.
            x: (B, ...), the state.
            t: (B,), time as the model wants it.
            time: where the step began, in [0, 1], which the interval refers to.
            labels: (B,) int64.
        """
        low, high = self.rule.options.interval
        if self.weight == 0 or not low <= time <= high:
            return predict(x, t, labels)
        if self.weaker is not None:
            return self.rule.combine(predict(x, t, labels), self.weaker(x, t, labels), self.weight, time)
        if labels is None:
            return predict(x, t, labels)
        both = torch.cat([labels, torch.full_like(labels, NO_LABEL)])
        conditional, unconditional = predict(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return self.rule.combine(conditional, unconditional, self.weight, time)
