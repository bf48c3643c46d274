"""Handling of SIGTERM and SIGINT: the loop finishes its step, saves, and exits with a status that means "resume"."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer

RESUME_EXIT_STATUS = 75
"""EX_TEMPFAIL of sysexits.h: the run was interrupted and saved; run the same command again."""


class Interrupted(Exception):
    """The run was asked to stop, and has saved its state."""


class StopRequest:
    """Request to stop, set by a signal."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    @property
    def requested(self) -> bool:
        return self.signal_name is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.requested:  # a second signal means now: give the default behaviour back
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal_name = signal.Signals(number).name


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within the block SIGTERM and SIGINT set the request; a second one ends the process at once."""
    request = StopRequest()
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, request._receive) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def announced_stop() -> Iterator[None]:
    """Within the block an end by a signal is announced, and has the exit status that asks for the same command."""
    try:
        yield
    except Interrupted as interruption:
        typer.echo(f"{interruption}. Saved: run the same command again to go on.", err=True)
        raise typer.Exit(RESUME_EXIT_STATUS) from interruption
