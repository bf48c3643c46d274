"""Commands that hand their arguments over: `simflow train`, `convert`, `app` and `doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simflow_plugin.cli.run_options import RUN_HELP, ConfigArgument, WeightsOptions
from simflow_plugin.train_options import TrainOptions


def train(config: ConfigArgument, options: TrainOptions) -> None:
    """Train a model, or go on with a run that was interrupted; then measure it and write its report."""
    from simflow_plugin.train import train_by_name

    train_by_name(config, options)


def convert(
    source: Annotated[str, typer.Option("--from", help="ml-starflow, ml-tarflow or repa-e.")],
    checkpoint: Annotated[
        Path, typer.Option(help="safetensors, or a file of torch.save; no code in it is run.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; new or empty.")],
    config: Annotated[
        Path | None, typer.Option(help="YAML or JSON: the peer's constructor arguments as a mapping.")
    ] = None,
) -> None:
    """Convert a checkpoint; simflow_plugin.convert.load_converted(OUT) reads the result."""
    from simflow_plugin.convert.foreign_checkpoint import convert_checkpoint

    typer.echo(convert_checkpoint(source, checkpoint, config, out))


def serve(
    run: Annotated[Path, typer.Argument(help=f"{RUN_HELP}.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; the default is reached from this machine only.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Default: the first free one from 7860 on.")
    ] = None,
    *,
    weights: WeightsOptions,
) -> None:
    """Serve a page: samples by class, guidance and seed; likelihood and classes of an image; interpolations.

    It needs the extra `app`. Nobody is asked for a password: whoever reaches the address may use the page.
    """
    from simflow_plugin.app.page import serve as serve_page

    serve_page(run, host, port, **weights.for_loading())


def doctor() -> None:
    """Print what this installation can do here: devices, optional packages, data sets, pretrained weights, parts."""
    from rich.console import Console
    from rich.table import Table

    from simflow_plugin.diagnosis import diagnose

    table = Table(title="simflow doctor", title_justify="left", show_lines=False)
    for column in ("what", "found", "what it means"):
        table.add_column(column, overflow="fold")
    for finding in diagnose():
        table.add_row(finding.what, finding.found, finding.meaning)
    Console().print(table)
    typer.echo("Nothing above is needed for `simflow train quickstart`.")
