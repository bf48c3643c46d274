"""One safetensors file of latents, in the layout that LightningDiT trains from, with the moments beside them.

    latents, latents_flip      (N, C, h, w), a sample of q(z given x), of the image and of its mirror image
    labels                     (N,), int64
    moments, moments_flip      (N, 2 C, h, w), mean and log-variance
    indices                    (N,), int64, of the images in the data set

All float32, in the normalised latent space of the run. Sample i depends on the seed and on i alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from simflow_plugin.contracts import ImageDataset
from simflow_plugin.data.loader import Rows, read_rows, to_float
from simflow_plugin.errors import RunDirectoryError
from simflow_plugin.files import file_digest, read_json_object, replacing, write_text_atomically
from simflow_plugin.preparing.shards import Shard
from simflow_plugin.randomness import IndexedRandom
from simflow_plugin.runs.loaded_run import LoadedRun

READERS = 4
"""Threads that read and decode images."""


@dataclass(frozen=True)
class LatentFacts:
    """Content of a file of latents.

    Args:
        name, bytes, sha256: of the file.
        images: encoded.
        sums, squares: by channel, of `latents` over images and positions; from these come mean and std of all files.
        damaged: what is wrong with each image that was left out.
    """

    name: str
    bytes: int
    sha256: str
    images: int
    sums: list[float]
    squares: list[float]
    damaged: list[str]


def finished(shard: Shard, folder: Path) -> LatentFacts | None:
    """Return the facts of a file that was written before, whole and without damaged images; None otherwise."""
    path, beside = folder / shard.name, _facts_file(folder, shard)
    if not (path.is_file() and beside.is_file()):
        return None
    facts = LatentFacts(**read_json_object(beside, RunDirectoryError))
    is_whole = path.stat().st_size == facts.bytes and file_digest(path) == facts.sha256
    return facts if is_whole and not facts.damaged else None


def write_latents(
    loaded: LoadedRun, dataset: ImageDataset, shard: Shard, folder: Path, seed: int
) -> LatentFacts:
    """Encode the images of one shard and write them.

    Args:
        loaded: the run; its precision and its sampling batch size are used.
        dataset: images of the run's size.
        shard: which images, and the file's name.
        folder: it is there.
        seed: of the samples of the posterior.
    """
    damaged: list[str] = []
    found: dict[str, list[Tensor]] = {}
    for batch in _batches(dataset, shard, loaded.config.sampling.batch_size, damaged):
        rows = {"labels": batch.labels, "indices": batch.indices}
        random = IndexedRandom(seed, tuple(batch.indices.tolist()))
        images = to_float(batch.images)
        for shown, ending in ((images, ""), (images.flip(-1), "_flip")):
            latents, moments = encode(loaded, shown, random, f"posterior{ending}")
            rows |= {f"latents{ending}": latents, f"moments{ending}": moments}
        for name, tensor in rows.items():
            found.setdefault(name, []).append(tensor)
    channels, height, width = loaded.autoencoder.latent_shape(loaded.config.image_size)
    if not found:  # a shard of damaged images alone
        empty = torch.zeros(0, dtype=torch.int64)
        found = {"labels": [empty], "indices": [empty]}
        for ending in ("", "_flip"):
            found[f"latents{ending}"] = [torch.zeros(0, channels, height, width)]
            found[f"moments{ending}"] = [torch.zeros(0, 2 * channels, height, width)]
    tensors = {name: torch.cat(parts).contiguous() for name, parts in found.items()}
    path = folder / shard.name
    with replacing(path, RunDirectoryError) as part:
        # One entry: safetensors writes several in an order that differs from call to call.
        save_file(tensors, part, metadata={"total_size": str(len(tensors["labels"]))})
        num_bytes, digest = part.stat().st_size, file_digest(part)  # of what this call wrote
    wide = tensors["latents"].double()
    facts = LatentFacts(
        name=shard.name,
        bytes=num_bytes,
        sha256=digest,
        images=len(tensors["labels"]),
        sums=wide.sum((0, 2, 3)).tolist(),
        squares=wide.square().sum((0, 2, 3)).tolist(),
        damaged=damaged,
    )
    write_text_atomically(_facts_file(folder, shard), json.dumps(asdict(facts), indent=1) + "\n")
    return facts


def encode(loaded: LoadedRun, images: Tensor, random: IndexedRandom, purpose: str) -> tuple[Tensor, Tensor]:
    """Return a posterior sample (B, C, h, w) of images (B, 3, H, W) and moments (B, 2 C, h, w), on the CPU."""
    latents, posterior = loaded.encode(images, random, purpose)
    mean, std = posterior.mode().float().cpu(), posterior.std.float().cpu()
    return latents, torch.cat([mean, 2 * std.log().expand_as(mean)], dim=1)


def remove_facts_files(folder: Path) -> None:
    """Remove what only an interrupted run of the command needs."""
    for file in folder.glob(".*.safetensors.json"):
        file.unlink()


def _batches(dataset: ImageDataset, shard: Shard, size: int, damaged: list[str]) -> Iterator[Rows]:
    """Yield the images of a shard as `evaluation_batches` would, each batch read by several threads.

    Damaged images are left out and described; who counts them decides whether they are too many.
    """
    share = -(-size // READERS)
    with ThreadPoolExecutor(READERS) as threads:
        for start in range(shard.start, shard.stop, size):
            stop = min(start + size, shard.stop)
            parts = [range(first, min(first + share, stop)) for first in range(start, stop, share)]
            found = []
            for rows, corrupt in threads.map(lambda part: read_rows(dataset, part, replace=False), parts):
                damaged += corrupt.values()
                found += [rows] if rows is not None else []
            if found:
                yield Rows(*map(torch.cat, zip(*found, strict=True)))


def _facts_file(folder: Path, shard: Shard) -> Path:
    return folder / f".{shard.name}.json"
