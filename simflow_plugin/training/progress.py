"""The progress bar of training, with its losses; plain lines where there is no terminal."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from simflow_plugin.progress_bar import format_remaining

SHOWN = (
    "l1",
    "l2",
    "lpips",
    "timm",
    "nll",
    "denoising",
    "latent",
    "states",
    "alignment",
    "adversarial",
    "kl",
    "images_per_second",
)


class TrainingProgress:
    """Shows steps, losses and remaining time.

    Args:
        total: steps of the run.
        done: steps done before, on resume.
        enabled: only the main process shows anything.
    """

    def __init__(self, total: int, done: int, enabled: bool) -> None:
        self._console = Console(stderr=True)
        self._enabled = enabled
        self._total, self._done = total, done
        self._started = time.monotonic()
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}"),
            console=self._console,
            disable=not (enabled and self._console.is_terminal),
        )
        self._task = self._progress.add_task("training", total=total, completed=done, losses="")

    def __enter__(self) -> TrainingProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def advance(self) -> None:
        """One step is done."""
        self._progress.advance(self._task)

    def show(self, row: dict[str, Any]) -> None:
        """Show the losses of a logged row."""
        losses = "  ".join(f"{name} {row[name]:.3g}" for name in SHOWN if row.get(name) is not None)
        self._progress.update(self._task, losses=losses)
        if self._enabled and not self._console.is_terminal:
            left = format_remaining(self._remaining(row["step"]))
            self._console.print(
                f"step {row['step']:g}/{self._total}  {row['seconds']:.0f} s  {losses}  {left}",
                soft_wrap=True,
            )

    def _remaining(self, step: float) -> float:
        """Return the seconds that are left at the mean rate since this process began."""
        rate = (step - self._done) / max(time.monotonic() - self._started, 1e-9)
        return (self._total - step) / rate if rate > 0 else float("inf")
