"""`simflow statistics DATA --out FILE.npz`: mean and covariance of features, for `simflow evaluate --reference`.

`accelerate launch -m simflow_plugin.cli.statistics DATA --out FILE.npz` shares the images among processes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simflow_plugin.cli.run_options import OverwriteOption
from simflow_plugin.command_line import run_command


def statistics(
    data: Annotated[Path, typer.Argument(help="Folder of images (below it, too), or FILE.npz with arr_0.")],
    out: Annotated[Path, typer.Option(help="FILE.npz to write.")],
    extractor: Annotated[
        str,
        typer.Option(help="inception, dinov2-b, timm:MODEL (at 96 pixels: timm:MODEL@96), or pretrained."),
    ] = "inception",
    weights: Annotated[Path | None, typer.Option(help="File of the extractor's weights.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Does not change the numbers.")] = 64,
    overwrite: OverwriteOption = False,
) -> None:
    """Write mean and covariance of images' features, in the layout of the ADM suite, pytorch-fid and clean-fid.

    The same command again goes on after an interruption.
    """
    import torch
    from accelerate import PartialState

    from simflow_plugin.errors import ConfigError
    from simflow_plugin.evaluation.extractors import build_extractor
    from simflow_plugin.evaluation.feature_statistics import FeatureStatistics, save_statistics
    from simflow_plugin.evaluation.file_evaluation import shared_features
    from simflow_plugin.evaluation.image_sets import open_images
    from simflow_plugin.evaluation.sample_files import check_not_there
    from simflow_plugin.training.distributed.processes import leaving_together

    if out.suffix != ".npz" or out.is_dir():
        raise ConfigError(f"--out {out}: expected the name of a file that ends in .npz.")
    check_not_there(out, overwrite)
    images = open_images(data, "DATA")
    state = PartialState(cpu=not torch.cuda.is_available())
    loaded = build_extractor(extractor, weights, state.device)
    shared = shared_features(images, loaded, batch_size)
    with leaving_together():
        shared.make_missing(state.process_index, state.num_processes)
    if state.is_main_process:
        found = FeatureStatistics.of(shared.read(), loaded)
        save_statistics(out, found)
        typer.echo(
            f"{out}: {images.count:,} images of {data}, {len(found.pooled.mean)} features of {extractor}"
        )


if __name__ == "__main__":
    run_command(statistics)
