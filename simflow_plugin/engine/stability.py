"""Steps whose loss or gradient is not finite are skipped, counted, and after many in a row end the run by name.

Counters live on the device: nothing here waits for it except `read`, which the loop calls at logging steps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from simflow_plugin.errors import TrainingError


class BadStepCounter:
    """Counts skipped steps, in all and in a row.

    Args:
        limit: stop after this many in a row.
        device: of the training step.
        total: skipped so far, from a checkpoint.
    """

    def __init__(self, limit: int, device: torch.device, total: int = 0, in_a_row: int = 0) -> None:
        self.limit = limit
        self._total = torch.tensor(total, device=device)
        self._in_a_row = torch.tensor(in_a_row, device=device)
        self._longest = torch.tensor(in_a_row, device=device)

    def update(self, finite: Tensor) -> None:
        """Count one step; `finite` is a scalar bool tensor on the device."""
        bad = (~finite).to(self._total.dtype)
        self._total += bad
        self._in_a_row = (self._in_a_row + bad) * bad
        self._longest = torch.maximum(self._longest, self._in_a_row)

    def read(self) -> tuple[int, int]:
        """Return (skipped in all, skipped in a row now); waits for the device."""
        return int(self._total), int(self._in_a_row)

    def check(self, last_terms: dict[str, float], last_checkpoint: str) -> None:
        """Stop the run if too many steps in a row were skipped since the last check.

        Raises:
            TrainingError: naming the terms that are not finite and the last good checkpoint.
        """
        longest = int(self._longest)
        self._longest = self._in_a_row.clone()
        if longest < self.limit:
            return
        bad_terms = [name for name, value in last_terms.items() if not math.isfinite(value)]
        culprit = (
            f"terms not finite: {', '.join(bad_terms)}"
            if bad_terms
            else "every term is finite, but the gradient is not"
        )
        raise TrainingError(
            f"{longest} steps in a row had a loss or gradient that is not finite ({culprit}). "
            f"The last good checkpoint is {last_checkpoint}. Try a lower optimizer.lr, a longer warm-up, or float32."
        )
