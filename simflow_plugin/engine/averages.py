"""Averages of scalars between two rows of the log, summed on the device so that nothing waits for it."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor


class RunningMeans:
    """Sums of named scalars since the last row. Part of a checkpoint: a row may span an interruption."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self.num_steps = 0

    def add(self, name: str, value: Tensor) -> None:
        """Add a scalar tensor to the sum of `name`."""
        value = value.detach().float()
        self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()

    def add_all(self, output: dict[str, Any], share: float) -> None:
        """Add the scalars among `output`, each times `share`."""
        for name, value in output.items():
            if isinstance(value, Tensor) and value.ndim == 0:
                self.add(name, value.detach() * share)

    def sums(self, accelerator: Accelerator) -> dict[str, Tensor]:
        """Return the sums, averaged over processes, which must all call it."""
        if not self._sums:
            return {}
        names = sorted(self._sums)
        stacked = accelerator.reduce(torch.stack([self._sums[name] for name in names]), reduction="mean")
        return dict(zip(names, stacked.unbind(), strict=True))

    def take_means(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the means over steps and processes, and start anew; waits for the device."""
        sums = self.sums(accelerator)
        # Divided after the copy, in float64: the same numbers whether or not the sums came from a checkpoint.
        means = {name: value / max(1, self.num_steps) for name, value in _to_host(sums).items()}
        self._sums, self.num_steps = {}, 0
        return means

    def restore(self, sums: dict[str, Tensor], num_steps: int, device: torch.device) -> None:
        """Go on from sums that a checkpoint held."""
        self._sums = {name: value.to(device).clone() for name, value in sums.items()}
        self.num_steps = num_steps


def _to_host(tensors: dict[str, Tensor]) -> dict[str, float]:
    if not tensors:
        return {}
    return dict(zip(tensors, torch.stack(list(tensors.values())).tolist(), strict=True))
