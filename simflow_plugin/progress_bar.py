"""Progress of counted work with rate and remaining time: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from simflow_plugin.units import duration

SECONDS_BETWEEN_LINES = 15.0
"""Work that takes less prints nothing where there is no terminal."""


class RateColumn(ProgressColumn):
    """Finished units per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


@dataclass
class ProgressLines:
    """Progress as lines of text, at most one in `SECONDS_BETWEEN_LINES`, and one at the end of what was long.

    Args:
        description: of the work.
        total: units of it.
        done: units done before.
        output: where lines go.
        clock: seconds, monotonic.
    """

    description: str
    total: int
    done: int = 0
    output: TextIO = field(default_factory=lambda: sys.stderr)
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._started = self._printed = self.clock()
        self._at_start = self.done
        self._has_printed = False

    def advance(self, count: int) -> None:
        """Count units that are done."""
        self.done += count
        now = self.clock()
        is_end = self._has_printed and self.done >= self.total
        if now - self._printed < SECONDS_BETWEEN_LINES and not is_end:
            return
        self._printed, self._has_printed = now, True
        rate = (self.done - self._at_start) / max(now - self._started, 1e-9)
        line = f"{self.description} {self.done}/{self.total}  {rate:.1f}/s"
        if self.done < self.total and rate > 0:
            line += f"  {duration((self.total - self.done) / rate)} left"
        print(line, file=self.output, flush=True)


@contextmanager
def count_progress(description: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show progress within the block; the value is a function that advances it by a count."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield ProgressLines(description, total, done).advance
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(description, total=total, completed=done)
        yield lambda count: progress.advance(task, count)
