"""`simflow train CONFIG`: the same as `python -m simflow_plugin.train --config CONFIG`."""

from __future__ import annotations

from typing import Annotated

import typer

from simflow_plugin.cli.completion import complete_configuration
from simflow_plugin.option_groups import grouped
from simflow_plugin.train_options import TrainOptions


@grouped
def train(
    config: Annotated[
        str,
        typer.Argument(
            help="A YAML file, or the name of a shipped one (quickstart).",
            autocompletion=complete_configuration,
        ),
    ],
    options: TrainOptions,
) -> None:
    """Train a model, or go on with a run that was interrupted; then measure it and write its report."""
    from simflow_plugin.train import train_by_name

    train_by_name(config, options)
