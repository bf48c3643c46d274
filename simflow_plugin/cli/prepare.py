"""`simflow prepare DATA` and `simflow latents RUN`: a data set cropped, or encoded, once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from simflow_plugin.cli.run_options import RUN_HELP, DataRootOption, WeightsOptions


def prepare(
    data: Annotated[
        str,
        typer.Argument(
            help="A folder of images, a data set by name (digits), or a YAML mapping {name: ..., ...}."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder to write; the same command goes on where it was interrupted.")
    ],
    size: Annotated[int, typer.Option(min=1, max=1 << 14, help="Side of the images in pixels.")] = 256,
    images_per_shard: Annotated[int, typer.Option(min=1, help="Of each shard but the last.")] = 10_000,
    image_format: Annotated[
        Literal["png", "webp", "jpg"],
        typer.Option("--format", help="The first two are lossless, jpg has quality 95."),
    ] = "png",
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes; default: one for each core that this command may use."),
    ] = None,
) -> None:
    """Crop a data set once and store it in webdataset shards with class names, counts and digests."""
    from simflow_plugin.config.loading import resolve_data
    from simflow_plugin.preparing.cropped_images import Preparation
    from simflow_plugin.preparing.cropped_images import prepare as write
    from simflow_plugin.processors import num_usable_processors

    part = resolve_data(data, "DATA")
    preparation = Preparation(part, size, images_per_shard, image_format)
    card = write(preparation, out, workers or num_usable_processors())
    for split, facts in card["splits"].items():
        typer.echo(
            f"{split}: {facts['images']:,} images in {len(facts['shards'])} shards, {len(facts['damaged'])} damaged"
        )
        for problem in facts["damaged"]:
            typer.echo(f"left out: {problem}", err=True)
    typer.echo(f"{out / 'README.md'}")


@dataclass(frozen=True)
class EncodingOptions:
    """What is written of which images."""

    split: Annotated[Literal["train", "test"], typer.Option(help="Of the run's data.")] = "train"
    layout: Annotated[
        Literal["lightningdit", "repa-e"], typer.Option(help="repa-e adds that host's HDF5 file.")
    ] = "lightningdit"
    images_per_shard: Annotated[int, typer.Option(min=1, help="Of each file but the last.")] = 10_000
    seed: Annotated[int, typer.Option(help="Of the samples of the posterior.")] = 0


def latents(
    run: Annotated[str, typer.Argument(help=f"{RUN_HELP}.")],
    out: Annotated[
        Path, typer.Option(help="Folder to write; the same command goes on where it was interrupted.")
    ],
    data_root: DataRootOption = None,
    *,
    encoding: EncodingOptions,
    weights: WeightsOptions,
) -> None:
    """Encode the run's images: samples and moments in safetensors, statistics, digests and a card."""
    from simflow_plugin.preparing.encoded_images import Encoding, encode_dataset

    loaded = weights.open(run).with_data_root(data_root)
    wanted = Encoding(encoding.split, encoding.images_per_shard, encoding.seed, encoding.layout)
    card = encode_dataset(loaded, wanted, out)
    typer.echo(f"{card['images']:,} images, {card['damaged']} damaged")
    typer.echo(f"{out / 'README.md'}")
