"""`simflow latents RUN --out DIR`: a data set encoded once, for trainers that read latents from disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

import typer

from simflow_plugin.cli.run_options import RUN_HELP, DataRootOption, LastWeightsOption, PrecisionOption
from simflow_plugin.option_groups import grouped


@dataclass(frozen=True)
class EncodingOptions:
    """What is written of which images."""

    split: Annotated[str, typer.Option(help="Of the run's data: train or test.")] = "train"
    layout: Annotated[
        str, typer.Option(help="lightningdit; or repa-e, which adds that host's HDF5 file.")
    ] = "lightningdit"
    images_per_shard: Annotated[int, typer.Option(min=1, help="Of each file but the last.")] = 10_000
    seed: Annotated[int, typer.Option(help="Of the samples of the posterior.")] = 0


@grouped
def latents(
    run: Annotated[str, typer.Argument(help=f"{RUN_HELP}.")],
    out: Annotated[
        Path, typer.Option(help="Folder to write; the same command goes on where it was interrupted.")
    ],
    step: Annotated[int | None, typer.Option(help="Of the checkpoint; default: the newest.")] = None,
    last_weights: LastWeightsOption = False,
    precision: PrecisionOption = None,
    data_root: DataRootOption = None,
    *,
    encoding: EncodingOptions,
) -> None:
    """Encode the run's images: samples and moments in safetensors, statistics, digests and a card."""
    from simflow_plugin.errors import ConfigError
    from simflow_plugin.preparing.encoded_images import Encoding, Layout, encode_dataset
    from simflow_plugin.runs.sources import open_run

    for option, value, known in (
        ("--split", encoding.split, ("train", "test")),
        ("--layout", encoding.layout, ("lightningdit", "repa-e")),
    ):
        if value not in known:
            raise ConfigError(f"{option} {value}: expected {' or '.join(known)}.")
    loaded = open_run(run, averaged=not last_weights, step=step, precision=precision).with_data_root(
        data_root
    )
    wanted = Encoding(encoding.split, encoding.images_per_shard, encoding.seed, cast(Layout, encoding.layout))
    card = encode_dataset(loaded, wanted, out)
    typer.echo(f"{card['images']:,} images, {card['damaged']} damaged")
    typer.echo(f"{out / 'README.md'}")
