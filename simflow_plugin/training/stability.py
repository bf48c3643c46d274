"""Non-finite steps: skipped, counted, and after many in a row an error that names the terms.

Counters and statistics live on the device: nothing here waits for it but `read`, which the loop calls at logging steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from simflow_plugin.errors import TrainingError


class BadStepCounter:
    """Counts skipped steps, in all and in a row.

    Args:
        limit: stop after this many in a row.
        device: of the training step.
    """

    def __init__(self, limit: int, device: torch.device) -> None:
        self.limit = limit
        self._device = device
        self.restore(0, 0)

    def restore(self, total: int, in_a_row: int) -> None:
        """Go on from what `read` returned."""
        self._total = torch.tensor(total, device=self._device)
        self._in_a_row = torch.tensor(in_a_row, device=self._device)
        self._longest = self._in_a_row.clone()

    def update(self, finite: Tensor) -> None:
        """Count one step; `finite` is a scalar bool tensor on the device."""
        bad = (~finite).to(self._total.dtype)
        self._total += bad
        self._in_a_row = (self._in_a_row + bad) * bad
        self._longest = torch.maximum(self._longest, self._in_a_row)

    def read(self) -> tuple[int, int]:
        """Return (skipped in all, skipped in a row now); waits for the device."""
        return int(self._total), int(self._in_a_row)

    def check(self, bad_terms: Iterable[str], last_checkpoint: Callable[[], str]) -> None:
        """Stop the run if too many steps in a row were skipped since the last check.

        Args:
            bad_terms: names of the logged terms that were not finite since the last check.
            last_checkpoint: names the last good one; called only to stop, since it reads all of it.
        Raises:
            TrainingError: naming the terms that are not finite and the last good checkpoint.
        """
        longest = int(self._longest)
        self._longest = self._in_a_row.clone()
        if longest < self.limit:
            return
        terms = sorted(name for name in bad_terms if not name.startswith("grad_norm"))
        culprit = (
            f"terms not finite: {', '.join(terms)}"
            if terms
            else "every term is finite, but the gradient is not"
        )
        raise TrainingError(
            f"{longest} steps in a row had a loss or gradient that is not finite ({culprit}). "
            f"The last good checkpoint is {last_checkpoint()}. Try a lower optimizer.lr, a longer warm-up, or float32."
        )


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
