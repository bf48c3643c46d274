"""`simflow compare RUN RUN ...`: one page and one Markdown table of what was measured alike."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from simflow_plugin.cli.run_options import RUN_HELP, PrecisionOption


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(help=f"{RUN_HELP}; all evaluated alike (simflow evaluate)."),
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
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Also the page alone: one file, which opens anywhere."),
    ] = None,
    precision: PrecisionOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file of --html if it is there.")
    ] = False,
) -> None:
    """Compare runs: quality with intervals, cost, curves, samples from the same noise, and published numbers."""
    from simflow_plugin.errors import EvaluationError
    from simflow_plugin.evaluation.comparison import add_costs, add_samples, check_comparable, read_runs
    from simflow_plugin.evaluation.report.comparison_report import (
        metrics_table,
        to_markdown,
        write_comparison,
    )
    from simflow_plugin.evaluation.sample_files import check_not_there
    from simflow_plugin.files import write_text_atomically

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if out.exists() and not out.is_dir():
        raise EvaluationError(f"--out {out}: is a file. Name a folder.")
    if overwrite and html is None:
        raise EvaluationError(
            "--overwrite has no effect without --html: the files in --out are replaced anyway. Leave it out."
        )
    if html is not None:
        if html.suffix.lower() not in (".html", ".htm"):
            raise EvaluationError(f"--html {html}: expected the name of a file that ends in .html.")
        check_not_there(html, overwrite, "--html")
    compared = read_runs(runs, guidance, precision)
    problems = check_comparable(compared, force)
    add_costs(compared)
    add_samples(compared, per_class, seed)
    page = write_comparison(compared, problems, out, per_class)
    typer.echo(to_markdown(metrics_table(compared, problems)))
    if html is not None:
        write_text_atomically(html, page.read_text(encoding="utf-8"))
    typer.echo(f"{(html or page).resolve()}")
