"""`simflow distill RUN`: train a student that samples a run's flow in one pass; a run of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simflow_plugin.exits import exit_on_user_error
from simflow_plugin.train_options import (
    AllowChangedOption,
    DryRunOption,
    NoReportOption,
    SetOption,
)


def distill(
    run: Annotated[Path, typer.Argument(help="Run directory of a flow, the teacher.")],
    config: Annotated[
        str | None, typer.Option("--config", "-c", help="A YAML file whose keys replace the derived ones.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run directory of the student. Default: RUN-one-pass.")
    ] = None,
    step: Annotated[int | None, typer.Option(help="Checkpoint of the teacher. Default: the newest.")] = None,
    set_: SetOption = None,
    allow_changed: AllowChangedOption = None,
    dry_run: DryRunOption = False,
    no_report: NoReportOption = False,
) -> None:
    """Learn the inverse of a trained flow: samples in one parallel pass, likelihood of the teacher.

    The student is a run: `sample`, `evaluate`, `compare` take it, and the same command goes on where it was stopped.
    """
    with exit_on_user_error():
        from simflow_plugin.derived_runs.distillation import student_values
        from simflow_plugin.derived_runs.parent import DerivedRun, derived_config
        from simflow_plugin.runs.run_directory import RunDirectory
        from simflow_plugin.train import train_or_stop

        directory = RunDirectory(out if out is not None else run.with_name(f"{run.resolve().name}-one-pass"))
        derived = DerivedRun(run, directory, step, config, tuple(set_ or ()))
        resolved = derived_config(derived, student_values)
        if dry_run:
            print(resolved.to_yaml(), end="")
            return
        train_or_stop(resolved, directory, allow_changed or [], report=not no_report)
