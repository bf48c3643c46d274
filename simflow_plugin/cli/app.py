"""The console script `simflow`: one file per command in `simflow_plugin/cli`; torch is imported when a command runs."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from simflow_plugin import __version__
from simflow_plugin.cli import (
    analyze,
    bench,
    compare,
    config,
    convert,
    distill,
    doctor,
    evaluate,
    export,
    finetune_decoder,
    init,
    patch,
    plan,
    pretrain_encoder,
    sample,
    statistics,
    study,
    train,
)
from simflow_plugin.exits import exit_on_user_error
from simflow_plugin.readable_help import ReadableCommand, readable, without_technical_types
from simflow_plugin.streams import surviving_readers


class Commands(TyperGroup):
    """The group of all commands: a user's mistake in any of them is one message and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        with surviving_readers(), exit_on_user_error():
            return super().invoke(ctx)

    def get_params(self, ctx: Any) -> Any:
        return without_technical_types(super().get_params(ctx))


app = typer.Typer(
    cls=Commands,
    help="SimFlow: train a VAE and a latent normalizing flow end to end, and compare them fairly.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("init", cls=ReadableCommand)(readable(init.init))
app.command("train", cls=ReadableCommand)(readable(train.train))
app.command("distill", cls=ReadableCommand)(readable(distill.distill))
app.command("finetune-decoder", cls=ReadableCommand)(readable(finetune_decoder.finetune_decoder))
app.command("sample", cls=ReadableCommand)(readable(sample.sample))
app.command("evaluate", cls=ReadableCommand)(readable(evaluate.evaluate))
app.command("statistics", cls=ReadableCommand)(readable(statistics.statistics))
app.command("analyze", cls=ReadableCommand)(readable(analyze.analyze))
app.command("compare", cls=ReadableCommand)(readable(compare.compare))
app.command("export", cls=ReadableCommand)(readable(export.export))
app.command("convert", cls=ReadableCommand)(readable(convert.convert))
app.command("patch", cls=ReadableCommand)(readable(patch.patch))
app.command("plan", cls=ReadableCommand)(readable(plan.plan))
app.command("pretrain-encoder", cls=ReadableCommand)(readable(pretrain_encoder.pretrain_encoder))
app.command("bench", cls=ReadableCommand)(readable(bench.bench))
app.command("study", cls=ReadableCommand)(readable(study.study))
app.command("doctor", cls=ReadableCommand)(readable(doctor.doctor))
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
