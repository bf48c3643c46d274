"""`simflow compare RUN RUN ...`: one page and one Markdown table of what was measured alike."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from simflow_plugin.cli.run_options import PrecisionOption
from simflow_plugin.exits import exit_on_user_error


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run directories or exported folders, evaluated alike (simflow evaluate)."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for comparison.html, .md and .json.")] = Path(
        "comparison"
    ),
    guidance: Annotated[
        float | None, typer.Option(min=0, help="Of the evaluations; default: each run's own.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the noise of the sample grids.")] = 0,
    per_class: Annotated[
        int, typer.Option(min=1, help="Noise indices in the grids, of the first ten classes.")
    ] = 3,
    force: Annotated[
        bool, typer.Option("--force", help="Compare what was not measured alike; the page warns of it.")
    ] = False,
    precision: PrecisionOption = None,
) -> None:
    """Compare runs: quality with intervals, cost, curves, samples from the same noise, and published numbers."""
    with exit_on_user_error():
        from simflow_plugin.errors import EvaluationError
        from simflow_plugin.evaluation.comparison import add_costs, add_samples, check_comparable, read_runs
        from simflow_plugin.evaluation.report.comparison_report import (
            metrics_table,
            to_markdown,
            write_comparison,
        )

        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        if out.exists() and not out.is_dir():
            raise EvaluationError(f"--out {out}: is a file. Name a folder.")
        compared = read_runs(runs, guidance, precision)
        problems = check_comparable(compared, force)
        add_costs(compared)
        add_samples(compared, per_class, seed)
        page = write_comparison(compared, problems, out, per_class)
        typer.echo(to_markdown(metrics_table(compared, problems)))
        typer.echo(f"{page}")
