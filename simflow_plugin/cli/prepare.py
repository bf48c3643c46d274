"""`simflow prepare DATA --out SHARDS`: a data set as center-cropped webdataset shards with a card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer


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
        str, typer.Option("--format", help="png or webp (both lossless), or jpg (quality 95).")
    ] = "png",
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes; default: one for each core that this command may use."),
    ] = None,
) -> None:
    """Crop a data set once and store it in webdataset shards with class names, counts and digests."""
    from simflow_plugin.config.data_argument import resolve_data
    from simflow_plugin.errors import ConfigError
    from simflow_plugin.preparing.cropped_images import SAVING, Format, Preparation
    from simflow_plugin.preparing.cropped_images import prepare as write
    from simflow_plugin.processors import num_usable_processors

    if image_format not in SAVING:
        raise ConfigError(f"--format {image_format}: expected {', '.join(SAVING)}.")
    part = resolve_data(data, "DATA")
    preparation = Preparation(part, size, images_per_shard, cast(Format, image_format))
    card = write(preparation, out, workers or num_usable_processors())
    for split, facts in card["splits"].items():
        typer.echo(
            f"{split}: {facts['images']:,} images in {len(facts['shards'])} shards, {len(facts['damaged'])} damaged"
        )
        for problem in facts["damaged"]:
            typer.echo(f"left out: {problem}", err=True)
    typer.echo(f"{out / 'README.md'}")
