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

    Scalars that come together are copied by one kernel, so that their memory may be written over, and wait until one of
    their names comes again, or the step ends; then four kernels add all of them, however many there are, each sum as if
    it were alone, and one more joins those that came apart.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[tuple[str, ...], Tensor]] = []  # names that came together, their values
        self._share = 1.0
        self._totals: dict[
            tuple[str, ...], Tensor
        ] = {}  # of names that come together, (2, names): finite, not
        self._present: dict[str, float] = {}
        self.num_steps = 0

    def add_all(self, output: dict[str, Any], share: float) -> None:
        """Add the scalar tensors among `output`, each counting as `share` of a step."""
        scalars = {name: v for name, v in output.items() if isinstance(v, Tensor) and v.ndim == 0}
        if share != self._share or any(not scalars.keys().isdisjoint(names) for names, _ in self._waiting):
            self._add_waiting()
        self._share = share
        if scalars:
            values = torch.stack([value.detach().float() for value in scalars.values()])
            self._waiting.append((tuple(scalars), values))
        for name in scalars:
            self._present[name] = self._present.get(name, 0.0) + share

    def end_step(self) -> None:
        """Add what waits, and count the step."""
        self._add_waiting()
        self.num_steps += 1

    def _add_waiting(self) -> None:
        if not self._waiting:
            return
        names = tuple(name for together, _ in self._waiting for name in together)
        each = [values for _, values in self._waiting]
        values = each[0] if len(each) == 1 else torch.cat(each)
        finite = values.nan_to_num(0.0, 0.0, 0.0)
        totals = self._totals_of(names, values)
        totals[0].add_(finite, alpha=self._share)
        totals[1].add_(values.ne(finite), alpha=self._share)
        self._waiting = []

    def _totals_of(self, names: tuple[str, ...], like: Tensor) -> Tensor:
        """Return the totals of names that come together, taken out of other company where they were in some."""
        if names not in self._totals:
            alone: dict[str, Tensor] = {}
            for company in [key for key in self._totals if not set(key).isdisjoint(names)]:
                alone |= dict(zip(company, self._totals.pop(company).unbind(1), strict=True))
            zero = like.new_zeros(2)
            joined = torch.stack([alone.pop(name, zero) for name in names], dim=1)
            self._totals |= {(name,): total[:, None].clone() for name, total in alone.items()}
            self._totals[names] = joined
        return self._totals[names]

    def sums(self, accelerator: Accelerator) -> dict[str, Tensor]:
        """Return the sums by name, (3,) each, averaged over processes, which must all call it."""
        self._add_waiting()
        if not self._totals:
            return {}
        columns = {
            name: total
            for names, totals in self._totals.items()
            for name, total in zip(names, totals.unbind(1), strict=True)
        }
        names = sorted(columns)
        totals = torch.stack([columns[name] for name in names])
        present = totals.new_tensor([[self._present[name]] for name in names])
        stacked = accelerator.reduce(torch.cat([totals, present], dim=1), reduction="mean")
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
        self._totals, self._present, self.num_steps = {}, {}, 0
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
        self._waiting, self._totals, self._present = [], {}, {}
        for name, value in sums.items():
            self._totals[(name,)] = value[:2, None].to(device, copy=True)
            # Earlier versions took every term to be in every step, and kept two sums.
            self._present[name] = float(value[2]) if len(value) == 3 else float(num_steps)
        self.num_steps = num_steps


def _to_host(tensors: dict[str, Tensor]) -> dict[str, list[float]]:
    if not tensors:
        return {}
    return dict(zip(tensors, torch.stack(list(tensors.values())).tolist(), strict=True))
