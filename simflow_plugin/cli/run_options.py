"""Options of the commands that read a trained run."""

from typing import Annotated

import typer

EmaLengthOption = Annotated[
    float | None,
    typer.Option(
        "--ema-length",
        help="Relative length of the average, where training.ema is {kind: power}; made of what the run stored.",
    ),
]
