"""`simflow distill RUN`: train a student that samples a run's flow in one pass; a run of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simflow_plugin.cli.derived_run import DerivedOptions, train_derived
from simflow_plugin.option_groups import grouped


@grouped
def distill(
    run: Annotated[Path, typer.Argument(help="Run directory of a flow, the teacher and parent.")],
    out: Annotated[
        Path | None, typer.Option(help="Run directory of the student. Default: RUN-one-pass.")
    ] = None,
    *,
    options: DerivedOptions,
) -> None:
    """Learn the inverse of a trained flow: samples in one parallel pass, likelihood of the teacher.

    The student is a run: `sample`, `evaluate`, `compare` take it, and the same command goes on where it was stopped.
    """
    from simflow_plugin.derived_runs.distillation import student_values

    student = out if out is not None else run.with_name(f"{run.resolve().name}-one-pass")
    train_derived(run, student, options, student_values)
