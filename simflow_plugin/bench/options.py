"""Options of `simflow bench`; without torch, so that the command line is read before it is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import typer


@dataclass(frozen=True)
class FlowOptions:
    """The flow that is timed, and its tokens."""

    size: Annotated[
        str,
        typer.Option(help="A named size of the flow: S, B, L, XL, XXL (STARFlow), simflow-l or simflow-xxl."),
    ] = "S"
    width: Annotated[int | None, typer.Option(min=1, help="Channels; in place of the size's.")] = None
    layers: Annotated[str | None, typer.Option(help="Layers of each block, the deep one last: 2,2,2,8.")] = (
        None
    )
    head_dim: Annotated[
        int | None, typer.Option(min=1, help="Channels of a head; in place of the size's.")
    ] = None
    family: Annotated[str, typer.Option(help="starflow or tarflow.")] = "starflow"
    batch: Annotated[int, typer.Option(min=1, help="Rows.")] = 8
    tokens: Annotated[int, typer.Option(min=4, help="Tokens of a row; a square number.")] = 256
    token_dim: Annotated[int, typer.Option(min=1, help="Channels of a token.")] = 16
    log_scale_std: Annotated[
        float, typer.Option(min=0, help="Spread of the random weights' log-scales; Jacobi depends on it.")
    ] = 0.3


@dataclass(frozen=True)
class MeasuringOptions:
    """Samplers that are timed, and how."""

    guidance: Annotated[float, typer.Option(min=0.01, help="Weight of the guided runs.")] = 1.5
    method: Annotated[
        list[str] | None,
        typer.Option(help="Sampler, a name or '{name: auto, tolerance: 1.0e-4}'; repeat for more."),
    ] = None
    naive: Annotated[
        bool | None, typer.Option("--naive/--no-naive", help="Run the slow oracle; default: up to 64 tokens.")
    ] = None
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each; the median counts.")] = 3
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one.")] = None
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        typer.Option(help="Compute type; all but float32 by autocast."),
    ] = "float32"
    seed: Annotated[int, typer.Option(help="Of weights and data.")] = 0
    cpu_time: Annotated[
        bool,
        typer.Option("--cpu-time", help="Time by the CPU's clock: steadier on a machine that others use."),
    ] = False
