"""`simflow bench`: speed and memory of the flow on this machine, as ratios in one run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simflow_plugin.option_groups import grouped

if TYPE_CHECKING:
    from simflow_plugin.bench.choose import Choice


class ComputeType(str, Enum):
    """Compute type of the bench; anything but float32 is autocast."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


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
    dtype: Annotated[ComputeType, typer.Option(help="Compute type.")] = ComputeType.float32
    seed: Annotated[int, typer.Option(help="Of weights and data.")] = 0
    cpu_time: Annotated[
        bool,
        typer.Option("--cpu-time", help="Time by the CPU's clock: steadier on a machine that others use."),
    ] = False


@grouped
def bench(
    compare_ml_starflow: Annotated[
        Path | None, typer.Option(help="A checkout of apple/ml-starflow, run on the same weights.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="File to write the numbers to.")] = None,
    loader: Annotated[
        str | None,
        typer.Option(
            metavar="CONFIG", help="Measure this configuration's data loader instead, in images per second."
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Seconds: a tiny flow, to see that all of it runs.")
    ] = False,
    *,
    flow: FlowOptions,
    measuring: MeasuringOptions,
) -> None:
    """Measure GEMM speed, the training step and every sampler, with and without guidance, in one run."""
    if loader is not None:
        from simflow_plugin.bench.loader_speed import measure_loader

        typer.echo(measure_loader(loader))
        return
    from simflow_plugin.bench.benchmark import run_bench
    from simflow_plugin.bench.choose import make_setting
    from simflow_plugin.errors import ConfigError

    if json is not None and not json.parent.is_dir():
        raise ConfigError(f"--json {json}: there is no folder {json.parent}. Make it first.")
    report = run_bench(make_setting(_choice(flow, measuring), compare_ml_starflow, quick))
    report.print()
    if json is not None:
        report.save(json)
        typer.echo(f"numbers -> {json}")


def _choice(flow: FlowOptions, measuring: MeasuringOptions) -> Choice:
    from simflow_plugin.bench.choose import Choice

    shape = ("family", "size", "width", "layers", "head_dim")
    return Choice(
        architecture={name: getattr(flow, name) for name in shape},
        num_tokens=flow.tokens,
        token_dim=flow.token_dim,
        batch_size=flow.batch,
        guidance=measuring.guidance,
        rounds=measuring.rounds,
        methods=measuring.method or [],
        runs_naive=measuring.naive,
        device=measuring.device,
        dtype=measuring.dtype.value,
        seed=measuring.seed,
        log_scale_std=flow.log_scale_std,
        clock="cpu" if measuring.cpu_time else "wall",
    )
