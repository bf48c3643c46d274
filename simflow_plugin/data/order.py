"""The order of the data as a function: which image is at position p of a run.

Position p of the stream of images (p = 0, 1, 2, ... over the whole run, all processes together) lies in epoch
p // N, and shows image permutation_{seed, epoch}[p mod N]. Nothing is remembered, so a run resumes at any
step, with any number of processes and workers, and sees what it would have seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from simflow_plugin.errors import ConfigError, DataError
from simflow_plugin.randomness import derive_seed, named_generator

CACHED_EPOCHS = 2
"""A global batch can straddle two epochs; older permutations are dropped."""


def sample_rows(num_rows: int, count: int) -> list[int]:
    """Return `count` of the rows 0 .. num_rows - 1 (all of them if there are fewer), drawn at random once, ascending.

    What a part of a data set is measured on. Data sets are often sorted by class, so that their first rows are a few
    classes. The same rows in every run; those of a smaller count are among those of a larger one.
    """
    order = torch.randperm(num_rows, generator=named_generator(0, "sample_rows"))
    return sorted(order[:count].tolist())


@dataclass(frozen=True)
class DataOrder:
    """Positions -> indices of a data set.

    Args:
        num_examples: N, at least 1.
        seed: of the run.
    """

    num_examples: int
    seed: int
    _permutations: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.num_examples < 1:
            raise DataError("the data set is empty: there is no order of no images.")

    def indices(self, positions: Tensor) -> Tensor:
        """Return the data set's indices (B,) at `positions` (B,), both int64."""
        epochs, within = positions // self.num_examples, positions % self.num_examples
        indices = torch.empty_like(positions)
        for epoch in epochs.unique().tolist():
            rows = epochs == epoch
            indices[rows] = self._permutation(epoch)[within[rows]]
        return indices

    def _permutation(self, epoch: int) -> Tensor:
        # A memo of a pure function: what it holds never changes what `indices` returns.
        permutation = self._permutations.get(epoch)
        if permutation is None:
            generator = named_generator(self.seed, "data_order", epoch)
            permutation = torch.randperm(self.num_examples, generator=generator)
            self._permutations[epoch] = permutation
            for old in sorted(self._permutations)[:-CACHED_EPOCHS]:
                del self._permutations[old]
        return permutation


@dataclass(frozen=True)
class GlobalBatches:
    """Distribution of a global batch's rows over processes and accumulation steps.

    Micro-batch k of process r holds the contiguous rows (k W + r) B : (k W + r + 1) B, B = G / (A W). So the
    rows of a step are the same in the same global order for every (W, A).

    Args:
        batch_size: G, of the global batch.
        world_size: W, processes.
        accumulation: A, micro-batches per optimizer step and process.
    Raises:
        ConfigError: if W A does not divide G.
    """

    batch_size: int
    world_size: int = 1
    accumulation: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.batch_size % (self.world_size * self.accumulation):
            raise ConfigError(
                f"training.batch_size {self.batch_size} is not divisible by {self.world_size} processes x "
                f"{self.accumulation} accumulation steps = {self.world_size * self.accumulation}. The batch "
                "size is that of the global batch; choose a multiple."
            )

    @property
    def micro_batch_size(self) -> int:
        return self.batch_size // (self.world_size * self.accumulation)

    def offset(self, micro: int, rank: int) -> int:
        """Return the first row of micro-batch `micro` of process `rank` in the global batch."""
        return (micro * self.world_size + rank) * self.micro_batch_size

    def positions(self, step: int, micro: int, rank: int) -> Tensor:
        """Return the positions (B,), int64, in the stream of images."""
        start = step * self.batch_size + self.offset(micro, rank)
        return torch.arange(start, start + self.micro_batch_size)


def coin_flips(seed: int, purpose: str, positions: Tensor) -> Tensor:
    """Return one fair bit per position, (B,) bool, a hash of (seed, purpose, position).

    The mixing function is the finaliser of SplitMix64 (Steele, Lea and Flood, 2014), which passes BigCrush.
    """
    key = np.uint64(derive_seed(seed, purpose))
    with np.errstate(over="ignore"):
        state = key + positions.numpy().astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return torch.from_numpy((state >> np.uint64(63)).astype(bool))
