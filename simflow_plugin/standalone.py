"""One command as a program of its own, `python -m MODULE`, as accelerate starts it on several processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from simflow_plugin.exits import exit_on_user_error
from simflow_plugin.readable_help import ReadableCommand, readable
from simflow_plugin.streams import surviving_readers


class StandaloneCommand(ReadableCommand):
    """A command that ends as it does within `simflow`: a user's mistake is one message and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        with surviving_readers(), exit_on_user_error():
            return super().invoke(ctx)


def run_command(command: Callable[..., None]) -> None:
    """Run a command with the arguments of this process, and end the process."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(cls=StandaloneCommand)(readable(command))
    app()
