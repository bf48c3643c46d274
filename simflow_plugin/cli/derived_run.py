"""`simflow distill RUN` and `simflow finetune-decoder RUN`: runs that start from a trained one, their parent."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simflow_plugin.train_options import TrainingOptions

if TYPE_CHECKING:
    from simflow_plugin.derived_runs.parent import ParentFiles


@dataclass(frozen=True)
class DerivedOptions(TrainingOptions):
    """Options of a command on a trained run, the parent."""

    config: Annotated[
        str | None, typer.Option("--config", "-c", help="A YAML file whose keys replace the derived ones.")
    ] = None
    step: Annotated[int | None, typer.Option(help="Checkpoint of the parent. Default: the newest.")] = None


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

    _train_derived(run, out or _beside(run, "one-pass"), options, student_values)


def finetune_decoder(
    run: Annotated[Path, typer.Argument(help="Run directory of the first stage, the parent.")],
    out: Annotated[
        Path | None, typer.Option(help="Run directory of the result. Default: RUN-decoder.")
    ] = None,
    *,
    options: DerivedOptions,
) -> None:
    """Train the decoder on posterior draws with the parent's reconstruction losses and an adversarial one.

    Latents and likelihood stay those of the parent. The result is a run: `sample`, `evaluate`, `compare`, `export` take
    it, and the same command goes on where it was stopped. Steps: a tenth of the parent's, or --set training.steps=N.
    """
    from simflow_plugin.derived_runs.decoder_tuning import decoder_values

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    _train_derived(run, out or _beside(run, "decoder"), options, decoder_values)


def _beside(run: Path, suffix: str) -> Path:
    return run.with_name(f"{run.resolve().name}-{suffix}")


def _train_derived(
    parent: Path, out: Path, options: DerivedOptions, derive: Callable[[ParentFiles], dict[str, Any]]
) -> None:
    """Train the run in `out` whose configuration `derive` gives, from the start or from where it was stopped."""
    from simflow_plugin.derived_runs.parent import DerivedRun, derived_config
    from simflow_plugin.runs.run_directory import RunDirectory
    from simflow_plugin.train import train
    from simflow_plugin.training.interrupts import announced_stop

    directory = RunDirectory(out)
    derived = DerivedRun(parent, directory, options.step, options.config, tuple(options.set_ or ()))
    resolved = derived_config(derived, derive)
    if options.dry_run:
        print(resolved.to_yaml(), end="")
        return
    with announced_stop():
        train(resolved, directory, options.allow_changed or [], report=not options.no_report)
