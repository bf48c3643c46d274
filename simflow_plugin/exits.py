"""Turn a user's mistake into one clear message and an exit status; leave our own mistakes their traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from simflow_plugin.errors import SimflowError


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Within the block a `SimflowError` prints `error: <message>` and exits with its status."""
    try:
        yield
    except SimflowError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_status) from None
