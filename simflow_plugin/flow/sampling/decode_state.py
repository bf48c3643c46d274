"""State of a block's inversion: noise, condition rows, cache, guidance; and one evaluation of some steps."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from simflow_plugin.flow.affine import Affine, affine_inverse
from simflow_plugin.flow.block import FlowBlock
from simflow_plugin.flow.conditioning import Embedding
from simflow_plugin.flow.guidance import GuidanceWeights
from simflow_plugin.flow.kv_cache import LayerCache, allocate_cache, product_dtype
from simflow_plugin.flow.packing import can_pack, cast_copy, packed_copy
from simflow_plugin.flow.sampling.methods import BlockStatistics


@dataclass(frozen=True)
class BlockState:
    """State shared by all methods. Rows are B, or 2 B with guidance: the conditional ones first.

    The fields never change; `tokens`, `cache` and `statistics` are written in place. `packed` and `prefilled` return
    states with a faster block and with a cache.

    Args:
        block: the block, or a packed copy.
        noise: (B, T, D) in the block's own order, at least float32.
        tokens: (B, T + 1, D), filled in by the method: tokens[:, t + 1] is x_t, and tokens[:, 0] is the start
            token, so that the input of step i is tokens[:, i + lag] for both kinds of block.
        embedding: of the rows' condition.
        rotation: of prefix and steps, or None.
        statistics: filled in by the method.
        guidance: None without.
        cache: of the layers, for methods that need one; see `prefilled`.
        guide: with autoguidance, the same block of a weaker flow, in place of the unconditional rows. It follows the
            same tokens, in a buffer of its own.
    """

    block: FlowBlock
    noise: Tensor
    tokens: Tensor
    embedding: Embedding
    rotation: Tensor | None
    statistics: BlockStatistics
    guidance: GuidanceWeights | None = None
    cache: tuple[LayerCache, ...] = ()
    guide: BlockState | None = None

    @classmethod
    def begin(
        cls,
        block: FlowBlock,
        noise: Tensor,
        condition: Tensor | None,
        rotation: Tensor | None,
        statistics: BlockStatistics,
    ) -> BlockState:
        """Set up the inversion of `block` from noise (B, T, D) in raster order, without guidance."""
        ordered = block.reorder(noise)
        start = ordered.new_zeros(1, 1, 1) if block.start is None else block.start.to(ordered.dtype)
        tokens = torch.cat([start.expand(len(ordered), 1, ordered.shape[2]), ordered], dim=1)
        embedding = block.embed_condition(condition)
        stop = embedding.num_prefix + ordered.shape[1]
        turn = block.rotation_of(rotation, 0, stop, embedding.num_prefix)
        return cls(block, ordered, tokens, embedding, turn, statistics)

    @property
    def networks(self) -> list[BlockState]:
        """This state, and its guide's where it has one."""
        return [self] if self.guide is None else [self, self.guide]

    @property
    def num_steps(self) -> int:
        """Steps that give a target: T - lag."""
        return self.noise.shape[1] - self.block.lag

    @property
    def num_prefix(self) -> int:
        return self.embedding.num_prefix

    @property
    def num_rows(self) -> int:
        return len(self.noise) * (2 if self.has_null_rows else 1)

    @property
    def has_null_rows(self) -> bool:
        """True if unconditional rows follow the conditional ones."""
        return self.guidance is not None and self.guide is None

    def prefilled(self) -> BlockState:
        """Return this state with a new cache, through which the prefix has run."""
        state = self.with_cache()
        state.run_prefix()
        return state

    def with_cache(self) -> BlockState:
        """Return this state with a new and empty cache."""
        length, weight = self.num_prefix + self.num_steps, self.block.proj_in.weight
        cache = tuple(
            allocate_cache(self.block.config, len(self.block.layers), self.num_rows, length, weight)
        )
        return replace(self, cache=cache, guide=None if self.guide is None else self.guide.with_cache())

    def run_prefix(self) -> None:
        """Write the prefix's keys and values to the cache."""
        if self.embedding.prefix is not None:
            turn = None if self.rotation is None else self.rotation[: self.num_prefix]
            self.block.run_layers(self.embedding.prefix, turn, self.embedding, self.cache, 0)
        if self.guide is not None:
            self.guide.run_prefix()

    def packed(self) -> BlockState:
        """Return this state with the block's weights prepared for products of a few rows, where that helps."""
        if not can_pack(self.block.proj_in.weight):
            return self.cast()
        guide = None if self.guide is None else self.guide.packed()
        return replace(self, block=packed_copy(self.block, self.num_rows), guide=guide)

    def cast(self) -> BlockState:
        """Return this state with the block's weights in the type of their products, where autocast has another."""
        weight = self.block.proj_in.weight
        dtype = product_dtype(weight)
        block = self.block if dtype == weight.dtype else cast_copy(self.block, dtype)
        return replace(self, block=block, guide=None if self.guide is None else self.guide.cast())

    def solve(self, first: int, stop: int) -> Tensor:
        """Return the targets (B, n, D) of steps first : stop from the inputs in `tokens`; write the cache."""
        return self.targets(self.evaluate(first, stop), first, stop)

    def evaluate(self, first: int, stop: int) -> Affine:
        """Return the parameters (rows, n, D) that steps first : stop give; write the cache."""
        block = self.block
        hidden = block.embed_inputs(
            self.inputs(first, stop), block.position_rows(first, stop), self.embedding
        )
        position = self.num_prefix + first
        turn = None if self.rotation is None else self.rotation[position : self.num_prefix + stop]
        hidden = block.run_layers(hidden, turn, self.embedding, self.cache, position)
        self.count(stop - first)
        affine = block.head(hidden)
        return affine if self.guide is None else join_rows(affine, self.guide.evaluate(first, stop))

    def inputs(self, first: int, stop: int) -> Tensor:
        """Return the inputs (rows, n, D) of steps first : stop, the same for both halves with guidance."""
        inputs = self.tokens[:, first + self.block.lag : stop + self.block.lag]
        return torch.cat([inputs, inputs]) if self.has_null_rows else inputs

    def count(self, num_steps: int) -> None:
        """Note a network evaluation of `num_steps` positions."""
        self.statistics.passes += 1
        self.statistics.steps += num_steps

    def targets(self, affine: Affine, first: int, stop: int) -> Tensor:
        """Return the targets (B, n, D) of steps first : stop from the parameters of all rows."""
        lag = self.block.lag
        if self.guidance is not None:
            affine = self.guidance.combine(affine, first + lag, stop + lag)
        return affine_inverse(self.noise[:, first + lag : stop + lag], affine)

    def store(self, targets: Tensor, first: int) -> None:
        """Write targets (B, n, D) of the steps from `first` on to `tokens`."""
        begin = first + self.block.lag + 1
        self.tokens[:, begin : begin + targets.shape[1]] = targets
        if self.guide is not None:
            self.guide.store(targets, first)

    def start_at(self, guess: Tensor) -> None:
        """Take tokens (B, T, D) in raster order as the first guess of an iteration; no target is final by it."""
        first = self.block.lag  # with an output shift the first token is no target: it stays as it is
        self.tokens[:, first + 1 :] = self.block.reorder(guess)[:, first:].to(self.tokens.dtype)
        if self.guide is not None:
            self.guide.start_at(guess)

    def result(self) -> Tensor:
        """Return the tokens (B, T, D) in raster order."""
        return self.block.reorder(self.tokens[:, 1:])


def join_rows(*affines: Affine) -> Affine:
    """Return the parameters of a network and of its guide, if any, the rows of the first in front."""
    if len(affines) == 1:
        return affines[0]
    return Affine(*(torch.cat(parts) for parts in zip(*affines, strict=True)))
