"""Samples of an evaluation on disk, in shards with checksums that are drawn once and resumed after an interruption.

Shard n of a folder holds samples n S .. (n + 1) S - 1, and sample i depends on (weights, sampler, guidance,
seed, i) only. So any process can make any shard, an interrupted evaluation goes on with the missing ones,
and more samples later are the same first samples and some more.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simflow_plugin.errors import DataError, EvaluationError
from simflow_plugin.files import file_digest, read_json_object, replacing, write_text_atomically

log = logging.getLogger(__name__)

Draw = Callable[[Sequence[int]], tuple[NDArray[np.uint8], NDArray[np.int64]]]
"""Sample indices -> images (B, H, W, 3) and labels (B,)."""


@dataclass(frozen=True)
class SampleShards:
    """The shards of one setting.

    Args:
        folder: theirs alone; its name is the key of the setting.
        num_samples: wanted; shards on disk may hold more.
        shard_size: samples a shard.
    """

    folder: Path
    num_samples: int
    shard_size: int = 250

    @property
    def num_shards(self) -> int:
        return -(-self.num_samples // self.shard_size)

    def wanted(self, shard: int) -> int:
        """Return how many samples of a shard are wanted."""
        return min(self.shard_size, self.num_samples - shard * self.shard_size)

    def path(self, shard: int) -> Path:
        """Return the file of a shard."""
        return self.folder / f"shard_{shard:05d}.npz"

    def make_missing(
        self,
        draw: Draw,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        advance: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Make the shards of this process that are missing or damaged.

        Args:
            batch_size: samples at a time; does not change them.
            rank: of this process; shards go round the processes.
        Raises:
            EvaluationError: if a shard cannot be written.
        """
        for shard in range(rank, self.num_shards, world_size):
            problem = self.problem(shard)
            if problem is None:
                advance(self.wanted(shard))
                continue
            if self.path(shard).exists():
                log.warning("%s: %s. Making it again.", self.path(shard), problem)
            first = shard * self.shard_size
            stop = first + self.wanted(shard)
            images, labels = [], []
            for start in range(first, stop, batch_size):
                indices = range(start, min(start + batch_size, stop))
                drawn, of = draw(indices)
                images.append(drawn)
                labels.append(of)
                advance(len(indices))
            self._write(shard, np.concatenate(images), np.concatenate(labels))

    def problem(self, shard: int) -> str | None:
        """Return what is wrong with a shard on disk, or None if it is whole and large enough."""
        path = self.path(shard)
        try:
            card = read_json_object(path.with_suffix(".json"), DataError)
            expected, count = card["sha256"], card["num_samples"]
            found = file_digest(path)
        except (OSError, DataError, KeyError) as error:
            return f"missing or unreadable ({error})"
        if found != expected:
            return "does not match its checksum"
        return None if count >= self.wanted(shard) else f"holds {count} of {self.wanted(shard)} samples"

    def read(self) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        """Yield images (B, H, W, 3) and labels (B,) in order, a shard at a time, `num_samples` in all.

        Raises:
            EvaluationError: if a shard is missing or corrupt.
        """
        for shard in range(self.num_shards):
            yield self.read_shard(shard)

    def read_shard(self, shard: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return the images (B, H, W, 3) and labels (B,) that are wanted of one shard.

        Raises:
            EvaluationError: if it is missing or corrupt.
        """
        problem = self.problem(shard)
        if problem is not None:
            raise EvaluationError(
                f"{self.path(shard)}: {problem}. Run the same command again: it makes what is missing."
            )
        with np.load(self.path(shard), allow_pickle=False) as file:
            return file["arr_0"][: self.wanted(shard)], file["labels"][: self.wanted(shard)]

    def images(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """Return the images (len(indices), H, W, 3) of these samples.

        Raises:
            EvaluationError: if a shard is missing or corrupt.
        """
        found: dict[int, NDArray[np.uint8]] = {}
        for shard, (images, _) in enumerate(self.read()):
            here = [i for i in indices if i // self.shard_size == shard]
            found |= {i: images[i - shard * self.shard_size] for i in here}
            if len(found) == len(set(indices)):
                break
        return np.stack([found[i] for i in indices])

    def _write(self, shard: int, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        path = self.path(shard)
        try:
            with replacing(path) as part:
                with part.open("wb") as file:
                    np.savez(file, arr_0=images, labels=labels)
                checksum = file_digest(part)
            # The shard first: without its checksum it counts as missing.
            card = {"sha256": checksum, "num_samples": len(images)}
            write_text_atomically(path.with_suffix(".json"), json.dumps(card))
        except OSError as error:
            raise EvaluationError(
                f"{path}: cannot be written ({error.strerror}). Make room and run again."
            ) from error
