"""Latents of a data set by a trained autoencoder, for trainers that read them from disk: files, statistics, a card.

    OUT/latents_rank00_shard000.safetensors ...  latents_stats.pt  dataset.json  README.md

LightningDiT takes OUT as its `data_path`; with the layout `repa-e` there are that host's three files beside them.
`dataset.json` is written last; until then the same command goes on where it was, and refuses other weights and images.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from simflow_plugin.errors import RunDirectoryError
from simflow_plugin.files import file_digest, replacing
from simflow_plugin.preparing.begun import begun_folder, content_fingerprint, write_card
from simflow_plugin.preparing.data_card import latents_card
from simflow_plugin.preparing.latent_shards import ChannelStatistics, write_latents
from simflow_plugin.preparing.repa_e_layout import check_labels, write_repa_e
from simflow_plugin.preparing.shards import ShardFacts, shards_of, write_missing
from simflow_plugin.runs.loaded_run import LoadedRun
from simflow_plugin.runs.parts import build_dataset
from simflow_plugin.runs.sources import checkpoint_digest

STATISTICS, HOST_NAME = "latents_stats.pt", "latents"
Layout = Literal["lightningdit", "repa-e"]


@dataclass(frozen=True)
class Encoding:
    """Options of writing latents.

    Args:
        split: of the run's data, `train` or `test`.
        images_per_shard: in each file but the last; LightningDiT's own is 10,000.
        seed: of the samples of the posterior.
        layout: `repa-e` adds that host's files.
    """

    split: str = "train"
    images_per_shard: int = 10_000
    seed: int = 0
    layout: Layout = "lightningdit"


def encode_dataset(loaded: LoadedRun, encoding: Encoding, folder: Path) -> dict[str, Any]:
    """Write the latents of a run's data set; goes on where an interrupted call was.

    Args:
        folder: new, empty, or begun with the same weights, images and settings, for any layout.
    Returns:
        The card, as in `dataset.json`.
    Raises:
        RunDirectoryError: if the folder holds something else, is finished, or another process is filling it.
        DataError: as soon as more images are damaged than the data set's `max_corrupt_share` allows; or if labels are
            missing that a layout needs, before the first image is encoded.
    """
    dataset = build_dataset(loaded.config, encoding.split)
    if encoding.layout == "repa-e":
        check_labels(dataset)
    described = _described(loaded, encoding)
    content = content_fingerprint(loaded.config.data, dataset, encoding.split, loaded.config.image_size)
    shards = shards_of("latents_rank00_shard{:03d}.safetensors", len(dataset), encoding.images_per_shard)
    with begun_folder(folder, described, {encoding.split: content}):
        write = partial(write_latents, loaded, dataset, folder, encoding.seed)
        facts = write_missing(f"encoding {encoding.split}", dataset, shards, folder, write)
        return _finish(loaded, encoding, folder, facts, described)


def _finish(
    loaded: LoadedRun, encoding: Encoding, folder: Path, facts: list[ShardFacts], described: dict[str, Any]
) -> dict[str, Any]:
    """Write what is known of all latents: statistics, the host's files, the card."""
    _, height, width = loaded.autoencoder.latent_shape(loaded.config.image_size)
    statistics = ChannelStatistics.of(facts, height * width)
    with replacing(folder / STATISTICS, RunDirectoryError) as part:
        torch.save({"mean": statistics.mean, "std": statistics.std}, part)
    files = [folder / STATISTICS]
    if encoding.layout == "repa-e":
        files += write_repa_e(folder, HOST_NAME, [folder / one.name for one in facts], statistics)
    card = {
        **described,
        "layout": encoding.layout,
        "images": sum(one.images for one in facts),
        "damaged": sum(len(one.damaged) for one in facts),
        "classes": loaded.class_names,
        "mean": statistics.mean.flatten().tolist(),
        "std": statistics.std.flatten().tolist(),
        "files": [
            *(one.file() for one in facts),
            *(
                {"name": file.name, "bytes": file.stat().st_size, "sha256": file_digest(file)}
                for file in files
            ),
        ],
    }
    write_card(folder, card, latents_card(folder.name, card))
    return card


def _described(loaded: LoadedRun, encoding: Encoding) -> dict[str, Any]:
    """Return what decides the numbers, beside the images."""
    return {
        "written_by": "simflow latents",
        "run": loaded.directory.path.resolve().name,
        "step": loaded.checkpoint.step,
        "checkpoint": checkpoint_digest(loaded.checkpoint.path),
        "weights": loaded.weights_name,
        **({} if loaded.ema_length is None else {"ema_length": loaded.ema_length}),
        "precision": str(loaded.precision),
        "data": loaded.config.data.name,
        "image_size": loaded.config.image_size,
        "latent_shape": list(loaded.autoencoder.latent_shape(loaded.config.image_size)),
        "split": encoding.split,
        "images_per_shard": encoding.images_per_shard,
        "seed": encoding.seed,
    }
