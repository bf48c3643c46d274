"""`simflow bench`: speed and memory of the flow on this machine, as ratios in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simflow_plugin.bench.options import FlowOptions, MeasuringOptions


def bench(
    compare_ml_starflow: Annotated[
        Path | None, typer.Option(help="A checkout of apple/ml-starflow, run on the same weights.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="File to write the numbers to.")] = None,
    loader: Annotated[
        str | None,
        typer.Option(
            metavar="CONFIG", help="Measure this configuration's data loader instead, in images per second."
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Seconds: a tiny flow, to see that all of it runs.")
    ] = False,
    *,
    flow: FlowOptions,
    measuring: MeasuringOptions,
) -> None:
    """Measure GEMM speed, the training step and every sampler, with and without guidance, in one run."""
    if loader is not None:
        from simflow_plugin.bench.loader_speed import measure_loader

        typer.echo(measure_loader(loader))
        return
    from simflow_plugin.bench.benchmark import run_bench
    from simflow_plugin.bench.choose import make_setting
    from simflow_plugin.errors import ConfigError

    if json is not None and not json.parent.is_dir():
        raise ConfigError(f"--json {json}: there is no folder {json.parent}. Make it first.")
    report = run_bench(make_setting(flow, measuring, compare_ml_starflow, quick))
    report.print()
    if json is not None:
        report.save(json)
        typer.echo(f"numbers -> {json}")
