"""`simflow train CONFIG`: the same as `python -m simflow_plugin.train --config CONFIG`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped one (quickstart).")],
    out: Annotated[
        Path | None, typer.Option(help="Run directory; default runs/<name of the configuration>.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key.sub=value, as often as needed.")
    ] = None,
    allow_changed: Annotated[
        list[str] | None, typer.Option(help="A key that may differ from the run that is resumed.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")
    ] = False,
    no_report: Annotated[
        bool, typer.Option("--no-report", help="Train only: no summary, no report.")
    ] = False,
    profile: Annotated[int, typer.Option(min=0, help="Record N steps to trace.json, a Chrome trace.")] = 0,
) -> None:
    """Train a model, or go on with a run that was interrupted; then measure it and write its report."""
    from simflow_plugin.train import train_command

    train_command(config, out, set_, allow_changed, dry_run, no_report, profile)
