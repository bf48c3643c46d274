"""Averages of scalars between two rows of the log, summed on the device without synchronising it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from simflow_plugin.errors import CheckpointError


class Means(NamedTuple):
    """Of the steps since the last row.

    `values`: name -> mean over the steps where it was finite, None if it never was; `not_finite`: name -> steps
    (averaged over processes) where it was not, only names that have some.
    """

    values: dict[str, float | None]
    not_finite: dict[str, float]


class RunningMeans:
    """Sums of named scalars since the last row. Part of a checkpoint: a row may span an interruption.

    A sum is three: of the finite values, of the steps whose value was not finite, and of the steps that had the term
    at all. So one bad step does not hide the others, the term at fault can be named, and a term that begins
    between two rows (the adversary's) is a mean over its own steps.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self.num_steps = 0

    def add_all(self, output: dict[str, Any], share: float) -> None:
        """Add the scalar tensors among `output`, each counting as `share` of a step."""
        for name, value in output.items():
            if isinstance(value, Tensor) and value.ndim == 0:
                value = value.detach().float()
                finite = torch.isfinite(value)
                present = torch.ones_like(value)
                sums = share * torch.stack([torch.where(finite, value, 0.0), (~finite).float(), present])
                self._sums[name] = self._sums[name] + sums if name in self._sums else sums

    def sums(self, accelerator: Accelerator) -> dict[str, Tensor]:
        """Return the sums by name, (3,) each, averaged over processes, which must all call it."""
        if not self._sums:
            return {}
        names = sorted(self._sums)
        stacked = accelerator.reduce(torch.stack([self._sums[name] for name in names]), reduction="mean")
        return dict(zip(names, stacked.unbind(), strict=True))

    def take_means(self, accelerator: Accelerator) -> Means:
        """Return the means over steps and processes, and start anew; waits for the device."""
        values: dict[str, float | None] = {}
        not_finite = {}
        # Divided after the copy, in float64: the same numbers whether or not the sums came from a checkpoint.
        for name, (total, bad, present) in _to_host(self.sums(accelerator)).items():
            # Shares of a step may not add up to an integer exactly.
            count = round(present, 3) - bad
            values[name] = total / count if count > 1e-6 else None
            if bad > 0:
                not_finite[name] = bad
        self._sums, self.num_steps = {}, 0
        return Means(values, not_finite)

    @staticmethod
    def check(sums: Mapping[str, Tensor], source: str) -> None:
        """Refuse what `sums` cannot have returned.

        Raises:
            CheckpointError: naming the sum of another shape or type, or one that is not finite.
        """
        for name, value in sums.items():
            if value.shape not in ((2,), (3,)) or value.dtype != torch.float32 or not value.isfinite().all():
                raise CheckpointError(
                    f"{source}: {name}: expected 3 finite float32 numbers, found {tuple(value.shape)} {value.dtype}."
                )

    def restore(self, sums: dict[str, Tensor], num_steps: int, device: torch.device) -> None:
        """Go on from sums that a checkpoint held."""
        self._sums = {}
        for name, value in sums.items():
            if len(value) == 2:  # of a version that took every term to be in every step
                value = torch.cat([value, value.new_full((1,), num_steps)])
            self._sums[name] = value.to(device).clone()
        self.num_steps = num_steps


def _to_host(tensors: dict[str, Tensor]) -> dict[str, list[float]]:
    if not tensors:
        return {}
    return dict(zip(tensors, torch.stack(list(tensors.values())).tolist(), strict=True))
