"""Arguments and options that several commands share."""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from simflow_plugin.runs.loaded_run import LoadedRun


def complete_configuration(incomplete: str) -> list[str]:
    """Return the shipped configurations, YAML files and folders that begin with what was typed in a shell."""
    from simflow_plugin.config.yaml_source import shipped_configs

    paths = [f"{path}/" if os.path.isdir(path) else path for path in glob.glob(glob.escape(incomplete) + "*")]
    files = [path for path in paths if path.endswith(("/", ".yaml", ".yml"))]
    return [name for name in shipped_configs() if name.startswith(incomplete)] + sorted(files)


ConfigArgument = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG",
        help="A YAML file, or the name of a shipped one (quickstart).",
        autocompletion=complete_configuration,
    ),
]

RUN_HELP = "Run directory, exported folder, or OWNER/NAME on the Hub"
"""Of every argument that `open_run` takes."""
PrecisionOption = Annotated[
    str | None,
    typer.Option(help="auto, float32, bfloat16 or float16; default: `training.precision` of the run."),
]
LastWeightsOption = Annotated[bool, typer.Option("--last-weights", help="Not the averaged (EMA) weights.")]
LpipsOption = Annotated[Path | None, typer.Option(help="File of torchvision's AlexNet, for LPIPS.")]
AutoguidanceOption = Annotated[
    str | None,
    typer.Option(
        "--autoguidance",
        metavar="RUN@STEP",
        help="Guide by this weaker model: RUN, RUN@STEP, or @STEP of the run itself; none: by the unconditional half. "
        "Default: the run's own.",
    ),
]
DataRootOption = Annotated[
    Path | None, typer.Option("--data-root", help="Where the run's images are now, if they moved.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")]


@dataclass(frozen=True)
class WeightsOptions:
    """Weights of a run to load, and the precision to compute in."""

    step: Annotated[int | None, typer.Option(min=0, help="Of the checkpoint; default: the newest.")] = None
    last_weights: LastWeightsOption = False
    ema_length: Annotated[
        float | None,
        typer.Option(
            help="Relative length of the average, where training.ema is {kind: power}; made of what the run stored.",
        ),
    ] = None
    precision: PrecisionOption = None

    def for_loading(self) -> dict[str, Any]:
        """Return these options as arguments of `simflow_plugin.load` and of `open_run`."""
        others = {name: value for name, value in vars(self).items() if name != "last_weights"}
        return {"averaged": not self.last_weights, **others}

    def open(self, run: Path | str, device: Any = None) -> LoadedRun:
        """Return the run with these weights."""
        from simflow_plugin.runs.sources import open_run

        return open_run(run, device, **self.for_loading())
