"""`simflow sample RUN`: draw class-balanced samples from a run's averaged weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simflow_plugin.cli.run_options import EmaLengthOption
from simflow_plugin.exits import exit_on_user_error


def sample(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    out: Annotated[
        Path, typer.Option(help="FILE.npz (arr_0 uint8 NHWC, labels), or a directory for PNG files.")
    ],
    num: Annotated[int, typer.Option(min=1, help="Number of samples; classes in turn.")] = 100,
    guidance: Annotated[float | None, typer.Option(min=0, help="Weight w; default: the run's own.")] = None,
    seed: Annotated[int, typer.Option(help="Of the noise; sample i depends on the seed and i only.")] = 0,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Does not change the samples.")] = None,
    ema_length: EmaLengthOption = None,
) -> None:
    """Draw class-balanced samples from the averaged (EMA) weights of a run."""
    with exit_on_user_error():
        from simflow_plugin.evaluation.sample_files import check_out, sample_run, save_samples

        check_out(out)
        images, labels = sample_run(run, num, guidance, seed, batch_size, ema_length)
        save_samples(out, images, labels)
        typer.echo(f"{num} samples -> {out}")
