"""Turn a user's mistake into one clear message and an exit status; leave our own mistakes their traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from simflow_plugin.errors import SimflowError, TrainingError
from simflow_plugin.files import is_disk_full
from simflow_plugin.plugins import describe


class ErrorExit(SystemExit):
    """The end of a command whose error has been printed."""


@contextmanager
def exit_on_full_disk() -> Iterator[None]:
    """Within the block a full disk prints what to do and exits with status 3."""
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        print(
            f"error: the disk is full ({error}). Free some space and run the same command again.",
            file=sys.stderr,
        )
        raise ErrorExit(TrainingError.exit_status) from None


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Within the block a `SimflowError` prints `error: <message>` and exits with its status; a full disk, with 3.

    No command of ours leaves by `sys.exit`: code of a plugin that does is named, and is no success.
    """
    try:
        with exit_on_full_disk():
            yield
    except SimflowError as error:
        print(f"error: {error}", file=sys.stderr)
        status = TrainingError.exit_status if _comes_from_a_full_disk(error) else error.exit_status
        raise ErrorExit(status) from None
    except ErrorExit:
        raise
    except SystemExit as error:
        print(f"error: a part or library ended the command: {describe(error)}", file=sys.stderr)
        raise ErrorExit(SimflowError.exit_status) from None


def _comes_from_a_full_disk(error: BaseException | None) -> bool:
    """Return whether an error, or one that it was made from, says that the disk is full."""
    while error is not None:
        if is_disk_full(error):
            return True
        error = error.__cause__
    return False
