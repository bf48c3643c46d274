"""`simflow train CONFIG`: the same as `python -m simflow_plugin.train --config CONFIG`."""

from __future__ import annotations

from typing import Annotated

import typer

from simflow_plugin.cli.completion import complete_configuration
from simflow_plugin.train_options import (
    AllowChangedOption,
    AllowPipesOption,
    DataRootOption,
    DryRunOption,
    NoReportOption,
    OutOption,
    ProfileOption,
    SetOption,
)


def train(
    config: Annotated[
        str,
        typer.Argument(
            help="A YAML file, or the name of a shipped one (quickstart).",
            autocompletion=complete_configuration,
        ),
    ],
    out: OutOption = None,
    set_: SetOption = None,
    allow_changed: AllowChangedOption = None,
    dry_run: DryRunOption = False,
    no_report: NoReportOption = False,
    profile: ProfileOption = 0,
    allow_pipes: AllowPipesOption = False,
    data_root: DataRootOption = None,
) -> None:
    """Train a model, or go on with a run that was interrupted; then measure it and write its report."""
    from simflow_plugin.train import train_command

    train_command(config, out, set_, allow_changed, dry_run, no_report, profile, allow_pipes, data_root)
