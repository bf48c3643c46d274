"""One safetensors file of latents, in the layout that LightningDiT trains from, with the moments beside them.

    latents, latents_flip      (N, C, h, w), a sample of q(z given x), of the image and of its mirror image
    labels                     (N,), int64
    moments, moments_flip      (N, 2 C, h, w), mean and log-variance
    indices                    (N,), int64, of the images in the data set

All float32, in the normalised latent space of the run. Sample i depends on the seed and on i alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from simflow_plugin.contracts import ImageDataset
from simflow_plugin.data.loader import Rows, read_rows, to_float
from simflow_plugin.errors import DataError, RunDirectoryError
from simflow_plugin.files import replacing
from simflow_plugin.preparing.shards import Shard, ShardFacts, save_facts
from simflow_plugin.randomness import IndexedRandom
from simflow_plugin.runs.loaded_run import LoadedRun

READERS = 4
"""Threads that read and decode images."""


@dataclass(frozen=True)
class ChannelStatistics:
    """Of all latents: `mean` and `std` (1, C, 1, 1) float32; the variance has n - 1 in its denominator."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, shards: Sequence[ShardFacts], num_positions: int) -> ChannelStatistics:
        """Return the statistics from the sums of every shard.

        Raises:
            DataError: for fewer than two numbers a channel.
        """
        count = num_positions * sum(shard.images for shard in shards)
        if count < 2:
            raise DataError(f"{count} numbers a channel: there are no latents to measure.")
        total, square = (
            torch.tensor([shard.totals[name] for shard in shards], dtype=torch.float64).sum(0)
            for name in ("sums", "squares")
        )
        mean = total / count
        variance = ((square - count * mean.square()) / (count - 1)).clamp(min=0)
        return cls(mean.float()[None, :, None, None], variance.sqrt().float()[None, :, None, None])


def write_latents(
    loaded: LoadedRun, dataset: ImageDataset, folder: Path, seed: int, shard: Shard
) -> ShardFacts:
    """Encode the images of one shard and write them.

    Args:
        loaded: the run; its precision and its sampling batch size are used.
        dataset: images of the run's size.
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
    wide = tensors["latents"].double()
    sums, squares = (values.sum((0, 2, 3)).tolist() for values in (wide, wide.square()))
    num_images = len(tensors["labels"])
    with replacing(folder / shard.name, RunDirectoryError) as part:
        # One entry: safetensors writes several in an order that differs from call to call.
        save_file(tensors, part, metadata={"total_size": str(num_images)})
        return save_facts(folder, shard, part, num_images, damaged, sums=sums, squares=squares)


def encode(loaded: LoadedRun, images: Tensor, random: IndexedRandom, purpose: str) -> tuple[Tensor, Tensor]:
    """Return a posterior sample (B, C, h, w) of images (B, 3, H, W) and moments (B, 2 C, h, w), on the CPU."""
    latents, posterior = loaded.encode(images, random, purpose)
    mean, std = posterior.mode().float().cpu(), posterior.std.float().cpu()
    return latents, torch.cat([mean, 2 * std.log().expand_as(mean)], dim=1)


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
