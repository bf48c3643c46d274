"""Options that several commands on a trained run share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
EmaLengthOption = Annotated[
    float | None,
    typer.Option(
        "--ema-length",
        help="Relative length of the average, where training.ema is {kind: power}; made of what the run stored.",
    ),
]
DataRootOption = Annotated[
    Path | None, typer.Option("--data-root", help="Where the run's images are now, if they moved.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")]
