"""Latents of a data set by a trained autoencoder, for trainers that read them from disk: files, statistics, a card.

    OUT/latents_rank00_shard000.safetensors ...  latents_stats.pt  dataset.json  README.md

LightningDiT takes OUT as its `data_path`; with the layout `repa-e` there are that host's three files beside them.
`dataset.json` is written last; until then the same command goes on where it was, and refuses other weights and images.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from simflow_plugin.contracts import ImageDataset
from simflow_plugin.data.loader import check_corrupt
from simflow_plugin.data.webdataset import CARD
from simflow_plugin.errors import RunDirectoryError
from simflow_plugin.files import file_digest, replacing, write_text_atomically
from simflow_plugin.preparing.begun import begun_folder, content_fingerprint
from simflow_plugin.preparing.channel_statistics import ChannelStatistics
from simflow_plugin.preparing.data_card import latents_card
from simflow_plugin.preparing.latent_shards import LatentFacts, finished, remove_facts_files, write_latents
from simflow_plugin.preparing.repa_e_layout import check_labels, write_repa_e
from simflow_plugin.preparing.shards import Shard
from simflow_plugin.progress_bar import count_progress
from simflow_plugin.runs.loaded_run import LoadedRun
from simflow_plugin.runs.parts import build_dataset
from simflow_plugin.runs.sources import checkpoint_digest

BEGUN, STATISTICS, HOST_NAME = ".encoding.json", "latents_stats.pt", "latents"
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
        loaded: the run.
        encoding: what to write.
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
    with begun_folder(folder, BEGUN, described, {encoding.split: content}):
        facts = _write_all(loaded, dataset, encoding, folder)
        return _finish(loaded, encoding, folder, facts, described)


def _finish(
    loaded: LoadedRun, encoding: Encoding, folder: Path, facts: list[LatentFacts], described: dict[str, Any]
) -> dict[str, Any]:
    """Write what is known of all latents: statistics, the host's files, the card."""
    statistics = _statistics(loaded, facts)
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
            *({"name": one.name, "bytes": one.bytes, "sha256": one.sha256} for one in facts),
            *(
                {"name": file.name, "bytes": file.stat().st_size, "sha256": file_digest(file)}
                for file in files
            ),
        ],
    }
    write_text_atomically(folder / "README.md", latents_card(folder.name, card))
    write_text_atomically(folder / CARD, json.dumps(card, indent=1) + "\n")
    remove_facts_files(folder)
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


def _write_all(
    loaded: LoadedRun, dataset: ImageDataset, encoding: Encoding, folder: Path
) -> list[LatentFacts]:
    step = encoding.images_per_shard
    shards = [
        Shard(f"latents_rank00_shard{number:03d}.safetensors", start, min(start + step, len(dataset)))
        for number, start in enumerate(range(0, len(dataset), step))
    ]
    found = {shard.name: facts for shard in shards if (facts := finished(shard, folder)) is not None}
    done = sum(shard.stop - shard.start for shard in shards if shard.name in found)
    damaged: list[str] = []
    with count_progress(f"encoding {encoding.split}", len(dataset), done) as advance:
        for shard in shards:
            if shard.name not in found:
                facts = write_latents(loaded, dataset, shard, folder, encoding.seed)
                found[shard.name] = facts
                advance(shard.stop - shard.start)
                damaged += facts.damaged
                check_corrupt(dataset, len(damaged), f", such as {damaged[0]}" if damaged else "")
    return [found[shard.name] for shard in shards]


def _statistics(loaded: LoadedRun, facts: Sequence[LatentFacts]) -> ChannelStatistics:
    _, height, width = loaded.autoencoder.latent_shape(loaded.config.image_size)
    count = sum(one.images for one in facts) * height * width
    return ChannelStatistics.of([one.sums for one in facts], [one.squares for one in facts], count)
