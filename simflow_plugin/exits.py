"""Turn a user's mistake into one clear message and an exit status; leave our own mistakes their traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from simflow_plugin.errors import SimflowError
from simflow_plugin.plugins import describe


class ErrorExit(SystemExit):
    """The end of a command whose error has been printed."""


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Within the block a `SimflowError` prints `error: <message>` and exits with its status.

    No command of ours leaves by `sys.exit`: code of a plugin that does is named, and is no success.
    """
    try:
        yield
    except SimflowError as error:
        print(f"error: {error}", file=sys.stderr)
        raise ErrorExit(error.exit_status) from None
    except ErrorExit:
        raise
    except SystemExit as error:
        print(f"error: a part or library ended the command: {describe(error)}", file=sys.stderr)
        raise ErrorExit(SimflowError.exit_status) from None
