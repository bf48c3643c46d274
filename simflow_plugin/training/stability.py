"""Steps without effect: counted, named in the log, and after many in a row an error.

A step whose loss or gradient is not finite is skipped; so is the discriminator's own, which is counted apart. A part
whose gradients are all exactly zero (half precision that underflowed) steps without learning anything.

Counters and statistics live on the device: nothing here waits for it but `read`, which the loop calls at logging steps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from simflow_plugin.errors import TrainingError
from simflow_plugin.training.optimizers import StepOutcome

log = logging.getLogger(__name__)

SKIPPED, SKIPPED_DISCRIMINATOR = "skipped_steps", "skipped_discriminator_steps"
ZERO_GRADIENT = "zero_gradient_steps_"
"""Prefix, before the part, of the name in the log."""


class BadStepCounter:
    """Counts bad steps, in all and in a row, on the device of the training step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.restore(0, 0)

    def restore(self, total: int, in_a_row: int) -> None:
        """Go on from what `read` returned."""
        self._total = torch.tensor(total, device=self._device)
        self._in_a_row = torch.tensor(in_a_row, device=self._device)
        self._longest = self._in_a_row.clone()

    def update(self, good: Tensor) -> None:
        """Count one step; `good` is a scalar bool tensor on the device."""
        bad = (~good).to(self._total.dtype)
        self._total += bad
        self._in_a_row = (self._in_a_row + bad) * bad
        self._longest = torch.maximum(self._longest, self._in_a_row)

    def read(self) -> tuple[int, int]:
        """Return (bad in all, bad in a row now); waits for the device."""
        return int(self._total), int(self._in_a_row)

    def take_longest(self) -> int:
        """Return the longest row of bad steps since the last call; waits for the device."""
        longest = int(self._longest)
        self._longest = self._in_a_row.clone()
        return longest


class BadSteps:
    """The counters of a run: skipped steps, skipped steps of the discriminator, steps with zero gradients by part.

    Args:
        limit: stop after this many of one kind in a row.
        device: of the training step.
        parts: those whose gradients are expected not to vanish.
    """

    def __init__(self, limit: int, device: torch.device, parts: Iterable[str]) -> None:
        self.limit = limit
        names = [SKIPPED, SKIPPED_DISCRIMINATOR, *(f"{ZERO_GRADIENT}{part}" for part in parts)]
        self._counters = {name: BadStepCounter(device) for name in names}
        self._logged: dict[str, int] = {}

    def update(self, outcome: StepOutcome) -> None:
        """Count a step of the joint objective."""
        self._counters[SKIPPED].update(outcome.finite)
        for part, is_zero in outcome.zero.items():
            if f"{ZERO_GRADIENT}{part}" in self._counters:
                self._counters[f"{ZERO_GRADIENT}{part}"].update(~is_zero)

    def update_discriminator(self, finite: Tensor) -> None:
        """Count a step of the discriminator: autoencoder and model have learned from that one."""
        self._counters[SKIPPED_DISCRIMINATOR].update(finite)

    def row(self) -> dict[str, int]:
        """Return the totals for the log: `skipped_steps` always, the others once there are any."""
        row = {name: total for name, (total, _) in self.read().items() if total > 0}
        return {SKIPPED: 0, **row}

    def log_row(self, step: int) -> dict[str, int]:
        """Return `row`, and warn of the parts whose gradients have newly been zero; `step` is the number done."""
        counts = self.row()
        for name, count in counts.items():
            new = count - self._logged.get(name, 0)
            if name.startswith(ZERO_GRADIENT) and new > 0:
                log.warning(
                    "step %d: every gradient of the %s was exactly zero in %d steps since the last row of the log",
                    step,
                    name.removeprefix(ZERO_GRADIENT),
                    new,
                )
        self._logged = counts
        return counts

    def read(self) -> dict[str, tuple[int, int]]:
        """Return (in all, in a row now) by the name in the log; waits for the device."""
        return {name: counter.read() for name, counter in self._counters.items()}

    def restore(self, counts: Mapping[str, Sequence[int]]) -> None:
        """Go on from what `read` returned; a counter that is not named starts at zero."""
        for name, counter in self._counters.items():
            total, in_a_row = counts.get(name, (0, 0))
            counter.restore(total, in_a_row)
        self._logged = self.row()

    def check(self, bad_terms: Iterable[str], last_checkpoint: Callable[[], str]) -> None:
        """Stop the run if too many steps of one kind followed each other since the last check.

        Args:
            bad_terms: names of the logged terms that were not finite since the last check.
            last_checkpoint: names the last good one; called only to stop, since it reads all of it.
        Raises:
            TrainingError: naming the terms or the part at fault, and the last good checkpoint.
        """
        longest = {name: counter.take_longest() for name, counter in self._counters.items()}
        terms = sorted(name for name in bad_terms if not name.startswith("grad_norm"))
        for name, count in longest.items():
            if count >= self.limit:
                raise TrainingError(
                    f"{count} steps in a row {self._complaint(name, terms)}. The last good checkpoint is "
                    f"{last_checkpoint()}. Try a lower optimizer.lr, a longer warm-up, or float32."
                )

    def check_any_taken(self, steps: int, last_checkpoint: Callable[[], str]) -> None:
        """Refuse a finished run that learned nothing: one shorter than the limit, every step of which was skipped.

        Raises:
            TrainingError: naming the last checkpoint.
        """
        skipped, _ = self._counters[SKIPPED].read()
        if skipped >= steps > 0:
            raise TrainingError(
                f"all {steps} steps had a loss or gradient that is not finite: the run learned nothing. Its "
                f"weights are the initial ones ({last_checkpoint()}). Try a lower optimizer.lr, a longer warm-up, or "
                "float32."
            )

    @staticmethod
    def _complaint(name: str, terms: list[str]) -> str:
        if name.startswith(ZERO_GRADIENT):
            part = name.removeprefix(ZERO_GRADIENT)
            return f"left every gradient of the {part} exactly zero: nothing reaches it, or its precision underflows"
        what = "loss or gradient" if name == SKIPPED else "loss or gradient of the discriminator"
        culprit = (
            f"terms not finite: {', '.join(terms)}"
            if terms
            else "every term is finite, but the gradient is not"
        )
        return f"had a {what} that is not finite ({culprit})"


class FiniteStatistics:
    """Running statistics of batch norms, kept from a batch that is not finite.

    Such a step is skipped, but its forward pass has moved them already, and they would stay NaN for ever.

    Args:
        statistics: mean and variance by name, which the forward pass changes in place.
    """

    def __init__(self, statistics: Mapping[str, Tensor]) -> None:
        self._statistics = statistics
        self._last_finite = {name: tensor.clone() for name, tensor in statistics.items()}

    @torch.no_grad()
    def mend(self) -> None:
        """After each step: put back what is not finite, as it was after the last step where it was."""
        for name, tensor in self._statistics.items():
            last = self._last_finite[name]
            tensor.copy_(torch.where(tensor.isfinite().all(), tensor, last))
            last.copy_(tensor)


def poison_if_not_finite(loss: Tensor) -> Tensor:
    """Return `loss`, or NaN with NaN gradients where it is not finite.

    A loss that is not finite can have a gradient that is; then one process would step and
    another skip. A NaN gradient reaches all of them through the average of gradients, without a synchronisation.
    """
    return loss * torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan)
