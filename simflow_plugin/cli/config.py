"""`simflow config show NAME`, `simflow config list` and `simflow config explain KEY`."""

from __future__ import annotations

from typing import Annotated

import typer

from simflow_plugin.cli.run_options import ConfigArgument
from simflow_plugin.command_line import add_command
from simflow_plugin.train_options import SetOption


def show(name: ConfigArgument, set_: SetOption = None) -> None:
    """Print the resolved configuration, every default written out; what it needs and is not there goes to stderr."""
    from simflow_plugin.config.loading import load_config
    from simflow_plugin.local_paths import missing_paths

    config = load_config(name, set_)
    typer.echo(config.to_yaml(), nl=False)
    for key, path in missing_paths(config.model_dump(mode="json")):
        typer.echo(f"missing: {key}: {path} does not exist", err=True)


def list_() -> None:
    """Print the names of the configurations that ship with the package."""
    from simflow_plugin.config.yaml_source import shipped_configs

    typer.echo("\n".join(shipped_configs()))


def explain_(
    key: Annotated[
        str | None, typer.Argument(help="As in training.ema.decay; without it the sections are listed.")
    ] = None,
) -> None:
    """Print an option's type, range or choices, default and meaning; of a section or part the keys below it."""
    from simflow_plugin.config.explanation import explain

    typer.echo(explain(key))


app = typer.Typer(help="Look at configurations.", no_args_is_help=True)
add_command(app, show)
add_command(app, list_, "list")
add_command(app, explain_, "explain")
