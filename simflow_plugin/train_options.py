"""Options of the command line that `simflow train` and `python -m simflow_plugin.train` share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

OutOption = Annotated[
    Path | None, typer.Option("--out", help="Run directory; default runs/<name of the configuration>.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="As in training.steps=100: above the configuration."),
]
AllowChangedOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-changed", metavar="KEY", help="A key that may differ from the run that is resumed."
    ),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")]
DataRootOption = Annotated[
    Path | None,
    typer.Option("--data-root", help="Folder of the images: data.root, also of a run whose data moved."),
]
AllowPipesOption = Annotated[
    bool,
    typer.Option("--allow-pipes", help="Run the shell commands that data.shards names (pipe:...)."),
]
NoReportOption = Annotated[bool, typer.Option("--no-report", help="Train only: no summary, no report.")]
ProfileOption = Annotated[
    int, typer.Option("--profile", min=0, help="Record N steps to trace.json, a Chrome trace.")
]


@dataclass(frozen=True)
class TrainOptions:
    """All of them."""

    out: OutOption = None
    set_: SetOption = None
    allow_changed: AllowChangedOption = None
    dry_run: DryRunOption = False
    no_report: NoReportOption = False
    profile: ProfileOption = 0
    allow_pipes: AllowPipesOption = False
    data_root: DataRootOption = None
