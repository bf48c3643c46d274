"""`simflow finetune-decoder RUN`: train the decoder of a run on, encoder and model frozen; a run of its own."""

from __future__ import annotations

import logging
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


def finetune_decoder(
    run: Annotated[Path, typer.Argument(help="Run directory of the first stage, the parent.")],
    config: Annotated[
        str | None, typer.Option("--config", "-c", help="A YAML file whose keys replace the derived ones.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run directory of the result. Default: RUN-decoder.")
    ] = None,
    step: Annotated[int | None, typer.Option(help="Checkpoint of the parent. Default: the newest.")] = None,
    set_: SetOption = None,
    allow_changed: AllowChangedOption = None,
    dry_run: DryRunOption = False,
    no_report: NoReportOption = False,
) -> None:
    """Train the decoder on posterior draws with the parent's reconstruction losses and an adversarial one.

    Latents and likelihood stay those of the parent. The result is a run: `sample`, `evaluate`, `compare`, `export` take
    it, and the same command goes on where it was stopped. Steps: a tenth of the parent's, or --set training.steps=N.
    """
    with exit_on_user_error():
        from simflow_plugin.derived_runs.decoder_tuning import decoder_values
        from simflow_plugin.derived_runs.parent import DerivedRun, derived_config
        from simflow_plugin.runs.run_directory import RunDirectory
        from simflow_plugin.train import train_or_stop

        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        directory = RunDirectory(out if out is not None else run.with_name(f"{run.resolve().name}-decoder"))
        derived = DerivedRun(run, directory, step, config, tuple(set_ or ()))
        resolved = derived_config(derived, decoder_values)
        if dry_run:
            print(resolved.to_yaml(), end="")
            return
        train_or_stop(resolved, directory, allow_changed or [], report=not no_report)
