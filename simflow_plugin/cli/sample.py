"""`simflow sample RUN`: draw class-balanced samples from a run's averaged weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simflow_plugin.cli.run_options import (
    AutoguidanceOption,
    EmaLengthOption,
    OverwriteOption,
    PrecisionOption,
)
from simflow_plugin.exits import exit_on_user_error


def sample(
    run: Annotated[Path, typer.Argument(help="Run directory, exported folder, or OWNER/NAME on the Hub.")],
    out: Annotated[
        Path, typer.Option(help="FILE.npz (arr_0 uint8 NHWC, labels), or a directory for PNG files.")
    ],
    num: Annotated[int, typer.Option(min=1, help="Number of samples; classes in turn.")] = 100,
    guidance: Annotated[float | None, typer.Option(min=0, help="Weight w; default: the run's own.")] = None,
    seed: Annotated[int, typer.Option(help="Of the noise; sample i depends on the seed and i only.")] = 0,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Does not change the samples.")] = None,
    precision: PrecisionOption = None,
    ema_length: EmaLengthOption = None,
    autoguidance: AutoguidanceOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Draw class-balanced samples from the averaged (EMA) weights of a run."""
    with exit_on_user_error():
        from simflow_plugin.evaluation.drawing import ImageSampler, class_labels
        from simflow_plugin.evaluation.sample_files import check_not_there, check_out, save_samples
        from simflow_plugin.progress_bar import count_progress
        from simflow_plugin.runs.autoguidance import with_autoguidance
        from simflow_plugin.runs.sources import open_run

        check_out(out)
        check_not_there(out, overwrite)
        loaded = with_autoguidance(open_run(run, precision=precision, ema_length=ema_length), autoguidance)
        sampler = ImageSampler.of_run(loaded, guidance, seed)
        labels = class_labels(range(num), loaded.num_classes)
        with count_progress("sampling", num) as advance:
            images = sampler.draw_in_batches(labels, batch_size or loaded.config.sampling.batch_size, advance)
        save_samples(out, num, [(images.numpy(), labels.numpy())], class_names=loaded.class_names)
        typer.echo(f"{num} samples, guidance {sampler.guidance:g}, {loaded.precision} -> {out}")
