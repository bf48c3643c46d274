"""Output to readers that may go away: `simflow train | tee log` trains on when tee is killed."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

READER_IS_GONE = (errno.EPIPE, errno.EIO, errno.ESHUTDOWN)
"""A pipe without a reader, a terminal that was closed."""


class SurvivingStream:
    """A stream whose output is thrown away from the moment nobody reads it.

    Args:
        stream: standard output or standard error.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write `text`, or throw it away."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._throw_away(error)
            return len(text)

    def flush(self) -> None:
        """Flush, or throw away what was waiting."""
        try:
            self._stream.flush()
        except OSError as error:
            self._throw_away(error)

    def _throw_away(self, error: OSError) -> None:
        """Let the file descriptor lead nowhere; what is in the buffer, and what comes, goes there."""
        if error.errno not in READER_IS_GONE:
            raise error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            # A stream without a descriptor has no buffer that could fail later.
            with contextlib.suppress(OSError):
                os.dup2(nowhere, self._stream.fileno())
        finally:
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def surviving_readers() -> Iterator[None]:
    """Within the block, standard output and error survive their readers."""
    before = sys.stdout, sys.stderr
    streams = [SurvivingStream(stream) for stream in before]
    sys.stdout, sys.stderr = streams  # type: ignore[assignment]
    try:
        yield
    finally:
        for stream in streams:
            stream.flush()
        sys.stdout, sys.stderr = before
