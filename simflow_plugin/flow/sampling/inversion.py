"""Inversion of all blocks, the deep one first, each by its method, with guidance where it is conditional."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from simflow_plugin.flow.block import FlowBlock
from simflow_plugin.flow.guidance import GuidanceRule, GuidanceWeights
from simflow_plugin.flow.sampling.cached import solve_cached
from simflow_plugin.flow.sampling.decode_state import BlockState
from simflow_plugin.flow.sampling.decode_steps import begin_cached
from simflow_plugin.flow.sampling.jacobi import solve_jacobi
from simflow_plugin.flow.sampling.method_choice import solve_auto
from simflow_plugin.flow.sampling.methods import Auto, Jacobi, Method, Naive
from simflow_plugin.flow.sampling.naive import solve_naively
from simflow_plugin.flow.sampling.sampling_statistics import BlockStatistics, SamplingStatistics


@dataclass(frozen=True)
class Guide:
    """A weaker flow: its `blocks` in training order, its `condition` or None, its `rotation` of prefix and tokens."""

    blocks: Sequence[FlowBlock]
    condition: Tensor | None
    rotation: Tensor | None


@dataclass(frozen=True)
class SamplingRequest:
    """Settings of an inversion.

    Args:
        condition: labels (B,) or features (B, L, F), or None.
        null_condition: of the same shape, for the unconditional half; read with guidance > 0 only.
        guidance: w >= 0.
        rule: how both halves combine.
        methods: one per block, in training order.
        guess: (B, T, D) per block in training order, raster order: where the iteration on that block's input starts;
            None starts at the noise.
        guide: a weaker flow that stands for the unconditional half (autoguidance), or None.
    """

    condition: Tensor | None
    null_condition: Tensor | None
    guidance: float
    rule: GuidanceRule
    methods: Sequence[Method]
    guess: Sequence[Tensor] | None = None
    guide: Guide | None = None


def invert(
    blocks: Sequence[FlowBlock], noise: Tensor, rotation: Tensor | None, request: SamplingRequest
) -> tuple[Tensor, SamplingStatistics]:
    """Return tokens (B, T, D) in raster order from noise (B, T, D), and what it took."""
    tokens = noise
    run = SamplingStatistics()
    for index in reversed(range(len(blocks))):
        statistics = BlockStatistics(index + 1, request.methods[index].name)
        state = _begin(blocks[index], index, tokens, rotation, request, statistics)
        if request.guess is not None:
            state.start_at(request.guess[index])
        tokens = _solve(state, request.methods[index]).result()
        run.blocks.append(statistics)
    return tokens, run


def _begin(
    block: FlowBlock,
    index: int,
    noise: Tensor,
    rotation: Tensor | None,
    request: SamplingRequest,
    statistics: BlockStatistics,
) -> BlockState:
    if request.guide is not None:
        return _begin_autoguided(block, index, noise, rotation, request, statistics)
    guidance, condition = None, request.condition if block.is_conditional else None
    if block.is_conditional and condition is not None:
        weights = request.rule.weights(request.guidance, index, noise.shape[1], noise)
        if weights is not None and request.null_condition is not None:
            guidance = GuidanceWeights(request.rule, weights)
            condition = torch.cat([condition, request.null_condition])
    return BlockState.begin(block, noise, condition, rotation, guidance, statistics)


def _begin_autoguided(
    block: FlowBlock,
    index: int,
    noise: Tensor,
    rotation: Tensor | None,
    request: SamplingRequest,
    statistics: BlockStatistics,
) -> BlockState:
    """Set up a block with the same block of the guide beside it, where the rule guides it.

    Two flows share the noise, but each has its own variables between blocks: unless `block_interval` names others, only
    the block that reads the noise is guided.
    """
    assert request.guide is not None
    condition = request.condition if block.is_conditional else None
    state = BlockState.begin(block, noise, condition, rotation, None, statistics)
    weights = request.rule.weights(request.guidance, index, noise.shape[1], noise)
    if weights is None or index not in autoguided_blocks(request.rule, len(request.guide.blocks)):
        return state
    weaker = request.guide.blocks[index]
    condition = request.guide.condition if weaker.is_conditional else None
    own_count = BlockStatistics(statistics.block, statistics.method)  # a step of both is one step
    guide = BlockState.begin(weaker, noise, condition, request.guide.rotation, None, own_count)
    return replace(state, guidance=GuidanceWeights(request.rule, weights), guide=guide)


def autoguided_blocks(rule: GuidanceRule, num_blocks: int) -> range:
    """Return the indices of the blocks that a weaker flow may guide: the first generated, or all that a rule names."""
    return range(num_blocks) if rule.options.block_interval is not None else range(num_blocks - 1, num_blocks)


def _solve(state: BlockState, method: Method) -> BlockState:
    """Fill in the state's tokens by a method; return the state that holds them, which may be on other buffers."""
    if isinstance(method, Naive):
        solve_naively(state.packed())
    elif isinstance(method, Jacobi):
        solve_jacobi(state.packed().prefilled(), method, 0, state.num_steps)
    elif isinstance(method, Auto):
        return solve_auto(state, method)
    else:
        state, decode = begin_cached(state, method)
        solve_cached(decode, 0, state.num_steps)
    return state
