"""The part that commands have in common whose run starts from a trained one: options, configuration, training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simflow_plugin.train_options import AllowChangedOption, DryRunOption, NoReportOption, SetOption

if TYPE_CHECKING:
    from simflow_plugin.derived_runs.parent import ParentFiles


@dataclass(frozen=True)
class DerivedOptions:
    """Options of a command on a trained run, the parent."""

    config: Annotated[
        str | None, typer.Option("--config", "-c", help="A YAML file whose keys replace the derived ones.")
    ] = None
    step: Annotated[int | None, typer.Option(help="Checkpoint of the parent. Default: the newest.")] = None
    set_: SetOption = None
    allow_changed: AllowChangedOption = None
    dry_run: DryRunOption = False
    no_report: NoReportOption = False


def train_derived(
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
