"""Options of the commands that train, and of `python -m simflow_plugin.train`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="As in training.steps=100: above the configuration."),
]


@dataclass(frozen=True)
class TrainingOptions:
    """Those that all of them have."""

    set_: SetOption = None
    allow_changed: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="A key that may differ from the run that is resumed."),
    ] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")] = (
        False
    )
    no_report: Annotated[bool, typer.Option("--no-report", help="Train only: no summary, no report.")] = False


@dataclass(frozen=True)
class TrainOptions(TrainingOptions):
    """Those of `simflow train`."""

    out: Annotated[
        Path | None, typer.Option(help="Run directory; default runs/<name of the configuration>.")
    ] = None
    profile: Annotated[int, typer.Option(min=0, help="Record N steps to trace.json, a Chrome trace.")] = 0
    allow_pipes: Annotated[
        bool,
        typer.Option("--allow-pipes", help="Run the shell commands that data.shards names (pipe:...)."),
    ] = False
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of the images: data.root, also of a run whose data moved.")
    ] = None
