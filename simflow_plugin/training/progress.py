"""Progress of training with its losses: a bar of one line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from simflow_plugin.units import duration

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
WARM_UP_STEPS = 2
"""Steps that are slower than the others: memory is allocated, kernels are chosen."""
TIMED_STEPS = 10
"""Steps after which the duration of the run is stated."""


class LossesColumn(ProgressColumn):
    """Losses of the last logged row, cut where the line ends."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["losses"], no_wrap=True, overflow="ellipsis")


class TrainingProgress:
    """Shows steps, remaining time and losses.

    Args:
        done: steps done before, on resume.
        synchronise: wait for the device; called twice, to time the first steps.
        console: where to; None is standard error.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        total: int,
        done: int,
        enabled: bool,
        synchronise: Callable[[], None] = lambda: None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or Console(stderr=True)
        self._enabled, self._total, self._before = enabled, total, done
        self._synchronise, self._clock = synchronise, clock
        self._steps, self._timed_from = 0, 0.0
        fixed = Column(no_wrap=True)
        self._progress = Progress(
            TextColumn("step {task.completed:,}/{task.total:,}", table_column=fixed),
            BarColumn(bar_width=12, table_column=fixed),
            TimeRemainingColumn(table_column=fixed),
            LossesColumn(),
            console=self._console,
            disable=not (enabled and self._console.is_terminal),
        )
        self._task = self._progress.add_task("training", total=total, completed=done, losses="")

    def __enter__(self) -> TrainingProgress:
        if self._before >= self._total:
            self._say(
                f"start: finished: all {self._total:,} steps were done before. To train on: "
                "--set training.steps=N --allow-changed training.steps"
            )
        elif self._before:
            self._say(f"start: goes on after step {self._before:,} of {self._total:,}")
        else:
            self._say("start: from scratch")
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def advance(self) -> None:
        """One step is done."""
        self._progress.advance(self._task)
        self._steps += 1
        if self._steps == WARM_UP_STEPS:
            self._synchronise()
            self._timed_from = self._clock()
        elif self._steps == TIMED_STEPS:
            self._synchronise()
            self._foretell((self._clock() - self._timed_from) / (TIMED_STEPS - WARM_UP_STEPS))

    def _foretell(self, seconds_per_step: float) -> None:
        left = self._total - self._before - self._steps
        if left > 0:
            self._say(
                f"time: {seconds_per_step:.2g} s a step, about {duration(left * seconds_per_step)} for the other "
                f"{left:,} steps; sample grids and measurements come on top"
            )

    def show(self, row: dict[str, Any]) -> None:
        """Show the losses of a logged row."""
        losses = "  ".join(f"{name} {row[name]:.3g}" for name in SHOWN if row.get(name) is not None)
        self._progress.update(self._task, losses=losses)
        if not self._console.is_terminal:
            self._say(f"step {row['step']:g}/{self._total}  {row['seconds']:.0f} s  {losses}")

    def _say(self, line: str) -> None:
        if self._enabled:
            self._console.print(line, soft_wrap=True, markup=False, highlight=False)
