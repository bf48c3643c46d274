"""Inversion of all blocks, the deep one first, each by its method, with guidance where it is conditional."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from simflow_plugin.flow.affine import Affine
from simflow_plugin.flow.block import FlowBlock
from simflow_plugin.flow.guidance import GuidanceRule, GuidanceWeights
from simflow_plugin.flow.sampling.decode_state import BlockState, join_rows
from simflow_plugin.flow.sampling.decode_steps import begin_cached, solve_cached
from simflow_plugin.flow.sampling.jacobi import solve_jacobi
from simflow_plugin.flow.sampling.method_choice import solve_auto
from simflow_plugin.flow.sampling.methods import (
    Auto,
    BlockStatistics,
    Jacobi,
    Method,
    Naive,
    SamplingStatistics,
)


@dataclass(frozen=True)
class ConditionedBlocks:
    """A flow with its condition.

    Args:
        blocks: in training order.
        condition: labels (B,) or features (B, L, F), or None.
        rotation: of prefix and tokens, or None.
    """

    blocks: Sequence[FlowBlock]
    condition: Tensor | None
    rotation: Tensor | None

    def begin(
        self,
        index: int,
        noise: Tensor,
        statistics: BlockStatistics,
        null_condition: Tensor | None = None,
    ) -> BlockState:
        """Set up block `index` from noise (B, T, D); rows of the null condition follow those of the condition."""
        block = self.blocks[index]
        condition = self.condition if block.is_conditional else None
        if null_condition is not None:
            assert condition is not None
            condition = torch.cat([condition, null_condition])
        return BlockState.begin(block, noise, condition, self.rotation, statistics)


@dataclass(frozen=True)
class SamplingRequest:
    """Settings of an inversion.

    Args:
        null_condition: shaped like the condition, for the unconditional half; None without guidance.
        guidance: w >= 0.
        rule: how both halves combine.
        methods: one per block, in training order.
        guess: (B, T, D) per block in training order, raster order: where the iteration on that block's input starts;
            None starts at the noise.
        guide: a weaker flow that stands for the unconditional half (autoguidance), or None.
    """

    null_condition: Tensor | None
    guidance: float
    rule: GuidanceRule
    methods: Sequence[Method]
    guess: Sequence[Tensor] | None = None
    guide: ConditionedBlocks | None = None


def invert(
    flow: ConditionedBlocks, noise: Tensor, request: SamplingRequest
) -> tuple[Tensor, SamplingStatistics]:
    """Return tokens (B, T, D) in raster order from noise (B, T, D), and what it took."""
    tokens = noise
    run = SamplingStatistics()
    for index in reversed(range(len(flow.blocks))):
        statistics = BlockStatistics(index + 1, request.methods[index].name)
        state = _begin(flow, index, tokens, request, statistics)
        if request.guess is not None:
            state.start_at(request.guess[index])
        tokens = _solve(state, request.methods[index]).result()
        run.blocks.append(statistics)
    return tokens, run


def guidable_blocks(blocks: Sequence[FlowBlock], rule: GuidanceRule, is_autoguided: bool) -> list[int]:
    """Return the indices of the blocks that a rule may guide: those that see the condition.

    A weaker flow shares the noise, but each of the two has its own variables between blocks: unless `block_interval`
    names others, it guides the block that reads the noise only.
    """
    indices = list(range(len(blocks)))
    if is_autoguided:
        return indices if rule.options.block_interval is not None else indices[-1:]
    return [index for index in indices if blocks[index].is_conditional]


def _begin(
    flow: ConditionedBlocks,
    index: int,
    noise: Tensor,
    request: SamplingRequest,
    statistics: BlockStatistics,
) -> BlockState:
    """Set up a block: with unconditional rows, or with the same block of the guide, where the rule guides it."""
    weights = None
    if index in guidable_blocks(flow.blocks, request.rule, request.guide is not None):
        weights = request.rule.weights(request.guidance, index, noise.shape[1], noise)
    if weights is None:
        return flow.begin(index, noise, statistics)
    guidance = GuidanceWeights(request.rule, weights)
    if request.guide is None:
        return replace(flow.begin(index, noise, statistics, request.null_condition), guidance=guidance)
    own_count = BlockStatistics(statistics.block, statistics.method)  # a step of both is one step
    guide = request.guide.begin(index, noise, own_count)
    return replace(flow.begin(index, noise, statistics), guidance=guidance, guide=guide)


def _solve(state: BlockState, method: Method) -> BlockState:
    """Fill in the state's tokens by a method; return the state that holds them, which may be on other buffers."""
    if isinstance(method, Naive):
        _solve_naively(state.packed())
    elif isinstance(method, Jacobi):
        solve_jacobi(state.packed().prefilled(), method, 0, state.num_steps)
    elif isinstance(method, Auto):
        return solve_auto(state, method)
    else:
        state, decode = begin_cached(state, method)
        solve_cached(decode, 0, state.num_steps)
    return state


def _solve_naively(state: BlockState) -> None:
    """Run the network over all tokens again for every token, without a cache: the slow reference."""
    for step in range(state.num_steps):
        affine = join_rows(*(_without_cache(one, step) for one in state.networks))
        state.store(state.targets(affine, step, step + 1), step)
        state.count(step + 1)


def _without_cache(state: BlockState, step: int) -> Affine:
    """Return the parameters (rows, 1, D) of one step, from all inputs up to it."""
    block = state.block
    hidden = block.embed_inputs(state.inputs(0, step + 1), block.position_rows(0, step + 1), state.embedding)
    if state.embedding.prefix is not None:
        hidden = torch.cat([state.embedding.prefix, hidden], dim=1)
    turn = None if state.rotation is None else state.rotation[: hidden.shape[1]]
    hidden = block.run_layers(hidden, turn, state.embedding, [None] * len(block.layers), 0)
    return block.head(hidden[:, -1:])
