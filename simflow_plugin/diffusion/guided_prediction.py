"""Classifier-free guidance of a prediction, within an interval of time.

f = f_c + w (f_c - f_u) for t in [low, high], f_c elsewhere; w = 0 is the conditional model, in one pass.
References: arXiv:2207.12598; the interval: arXiv:2404.07724.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from simflow_plugin.contracts import NO_LABEL
from simflow_plugin.errors import ConfigError

Prediction = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""f(x_t (B, ...), t (B,), labels (B,) or None) -> (B, ...)."""


@dataclass(frozen=True)
class Guidance:
    """A guidance weight and the times in which it acts.

    Args:
        weight: w >= 0.
        interval: (low, high) with 0 <= low < high <= 1, both ends included.
    Raises:
        ConfigError: if the weight or the interval is out of range.
    """

    weight: float
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not self.weight >= 0 or self.weight == float("inf"):
            raise ConfigError(
                f"guidance is {self.weight}, but the weight must be finite and >= 0; 0 switches it off."
            )
        check_interval(self.interval)

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
        low, high = self.interval
        if self.weight == 0 or labels is None or not low <= time <= high:
            return predict(x, t, labels)
        both = torch.cat([labels, torch.full_like(labels, NO_LABEL)])
        conditional, unconditional = predict(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return conditional + self.weight * (conditional - unconditional)


def check_interval(interval: tuple[float, float]) -> None:
    """Refuse an interval that is empty or leaves [0, 1].

    Raises:
        ConfigError: naming the interval.
    """
    low, high = interval
    if not 0 <= low < high <= 1:
        raise ConfigError(
            f"guidance_interval is [{low}, {high}], but it must lie in [0, 1] with low < high "
            "(t = 0 is data, t = 1 is noise); [0, 1] guides everywhere."
        )
