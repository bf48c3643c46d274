"""`simflow study NAME`: several runs with equal budgets, and their table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simflow_plugin.exits import exit_on_user_error


def study(
    name: Annotated[str, typer.Argument(help="fixed_variance or headline.")],
    budget: Annotated[float, typer.Option(help="Factor on the steps and warm-up of every run alike.")] = 1.0,
    out: Annotated[Path | None, typer.Option(help="Directory; default runs/studies/NAME.")] = None,
    encoder: Annotated[
        Path, typer.Option(help="Classifier of `simflow pretrain-encoder`; made here if it is missing.")
    ] = Path("runs/encoders/fashion-mnist.safetensors"),
    num_samples: Annotated[int, typer.Option(min=2, help="Of each variant, for each guidance.")] = 2000,
    num_held_out: Annotated[int, typer.Option(min=1, help="Images for reconstruction, likelihood.")] = 1000,
) -> None:
    """Train what the study needs, measure every variant, print the table; the same command again continues.

    The directory gets study.md, study.json and one page of `simflow compare` for each guidance.
    """
    with exit_on_user_error():
        from simflow_plugin.cli.compare import compare
        from simflow_plugin.studies.definitions import find_study
        from simflow_plugin.studies.runner import StudyRunner
        from simflow_plugin.studies.stages import StudySettings
        from simflow_plugin.studies.table import to_markdown
        from simflow_plugin.training.interrupts import RESUME_EXIT_STATUS, Interrupted

        found = find_study(name)
        directory = out if out is not None else Path("runs/studies") / found.name
        settings = StudySettings(directory, encoder, budget, num_samples, num_held_out)
        try:
            document = StudyRunner(found, settings).run()
        except Interrupted as interruption:
            typer.echo(f"{interruption}. Saved: run the same command again to go on.", err=True)
            raise typer.Exit(RESUME_EXIT_STATUS) from interruption
        runs = [directory / "runs" / variant.name for variant in found.variants]
        for guidance in found.guidance:
            compare(runs, directory / f"comparison_guidance_{guidance:g}", guidance, 0, 3, False)
        typer.echo(to_markdown(found, document))
