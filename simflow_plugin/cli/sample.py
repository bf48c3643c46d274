"""`simflow sample RUN`: draw class-balanced samples from a run's averaged weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from simflow_plugin.cli.run_options import RUN_HELP, AutoguidanceOption, OverwriteOption, WeightsOptions

PER_CLASS, MOST_ROWS = 8, 20
"""Samples of a class, and classes, in a grid where no number is given."""


@dataclass(frozen=True)
class DrawingOptions:
    """The noise and the guidance of the samples."""

    guidance: Annotated[float | None, typer.Option(min=0, help="Weight w; default: the run's own.")] = None
    seed: Annotated[int, typer.Option(help="Of the noise; sample i depends on the seed and i only.")] = 0
    batch_size: Annotated[int | None, typer.Option(min=1, help="Does not change the samples.")] = None
    autoguidance: AutoguidanceOption = None


def sample(
    run: Annotated[Path, typer.Argument(help=f"{RUN_HELP}.")],
    out: Annotated[
        Path | None, typer.Option(help="FILE.npz (arr_0 uint8 NHWC, labels), or a directory for PNG files.")
    ] = None,
    grid: Annotated[
        Path | None, typer.Option(help="FILE.png: all samples in one picture, a row for each class.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Names or numbers, as in cat,dog; default: all classes.")
    ] = None,
    num: Annotated[
        int | None,
        typer.Option(min=1, help="Number of samples; classes in turn. Default 100; for a grid 8 a class."),
    ] = None,
    overwrite: OverwriteOption = False,
    *,
    drawn: DrawingOptions,
    weights: WeightsOptions,
) -> None:
    """Draw class-balanced samples from a run, by default from its averaged (EMA) weights."""
    import numpy as np

    from simflow_plugin.evaluation.drawing import ImageSampler, labels_in_turn, to_uint8
    from simflow_plugin.evaluation.sample_files import save_grid, save_samples
    from simflow_plugin.progress_bar import count_progress

    _check_places(out, grid, overwrite)
    loaded = weights.open(run)
    chosen = loaded.class_numbers(classes)
    if num is None:
        num = 100 if out is not None else PER_CLASS * min(len(chosen) or PER_CLASS, MOST_ROWS)
    sampler = ImageSampler.of_run(loaded, drawn.guidance, drawn.seed, drawn.autoguidance)
    labels = labels_in_turn(num, chosen)
    with count_progress("sampling", num) as advance:
        batch_size = drawn.batch_size or loaded.config.sampling.batch_size
        images = np.concatenate(
            [to_uint8(part).numpy() for part in sampler.batches(labels, batch_size, advance)]
        )
    if out is not None:
        save_samples(out, num, [(images, labels.numpy())], class_names=loaded.class_names)
    if grid is not None:
        save_grid(grid, images, labels.numpy(), loaded.class_names)
    written = ", ".join(str(path) for path in (out, grid) if path is not None)
    typer.echo(f"{num} samples, guidance {sampler.guidance:g}, {loaded.precision} -> {written}")


def _check_places(out: Path | None, grid: Path | None, overwrite: bool) -> None:
    """Refuse places that cannot be written, before anything is drawn."""
    from simflow_plugin.errors import ConfigError
    from simflow_plugin.evaluation.sample_files import check_not_there, check_out

    if out is None and grid is None:
        raise ConfigError("sample: nowhere to write: name --out FILE.npz, --out FOLDER or --grid FILE.png.")
    if out is not None:
        check_out(out, overwrite=overwrite)
    if grid is not None:
        if grid.suffix.lower() != ".png":
            raise ConfigError(f"--grid {grid}: expected the name of a file that ends in .png.")
        check_not_there(grid, overwrite, "--grid")
