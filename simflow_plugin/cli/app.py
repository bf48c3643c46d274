"""The console script `simflow`: every command of `simflow_plugin/cli`; torch is imported when a command runs."""

from __future__ import annotations

import typer

from simflow_plugin import __version__
from simflow_plugin.cli import (
    analyze,
    bench,
    compare,
    config,
    derived_run,
    direct,
    evaluate,
    export,
    fetch,
    init,
    patch,
    plan,
    prepare,
    pretrain_encoder,
    sample,
    statistics,
    study,
)
from simflow_plugin.command_line import ReadableGroup, add_command

app = typer.Typer(
    cls=ReadableGroup,
    help="SimFlow: train a VAE and a latent normalizing flow end to end, and compare them fairly.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
COMMANDS = (
    init.init,
    direct.train,
    derived_run.distill,
    derived_run.finetune_decoder,
    sample.sample,
    evaluate.evaluate,
    statistics.statistics,
    analyze.analyze,
    compare.compare,
    export.export,
    fetch.fetch,
    direct.convert,
    patch.patch,
    plan.plan,
    prepare.prepare,
    prepare.latents,
    pretrain_encoder.pretrain_encoder,
    bench.bench,
    study.study,
    direct.doctor,
)
for command in COMMANDS:
    add_command(app, command)
add_command(app, direct.serve, "app")
app.add_typer(config.app, name="config")


def _print_version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Options that stand before the command."""


def main() -> None:
    """Run the console script."""
    app()
