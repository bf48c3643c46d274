"""Decode steps captured as CUDA graphs, which outlive a sampling run: a step is then one launch and nothing else.

A graph holds addresses, so it has buffers of its own for all that a step reads or writes; a run copies into them.
Graphs are kept per block for the last shapes that were asked for, until the block is gone or `release_graphs`.
All graphs of a device share one memory pool (nothing of theirs outlives a step) and one stream to warm up and capture
on, since cuBLAS allocates a workspace for every stream.
"""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from simflow_plugin.errors import ConfigError
from simflow_plugin.flow.block import FlowBlock
from simflow_plugin.flow.guidance import GuidanceWeights
from simflow_plugin.flow.kv_cache import product_dtype
from simflow_plugin.flow.packing import cast_copy, casts_of, refresh
from simflow_plugin.flow.sampling.decode_state import BlockState
from simflow_plugin.flow.sampling.methods import BlockStatistics
from simflow_plugin.flow.sampling.static_step import StaticStep

WARM_UP_RUNS = 3
"""Runs before a capture, in which libraries allocate their workspaces."""
MAX_KEPT = 2
"""Graphs a block: a full batch and the smaller last one."""

_KEPT: WeakKeyDictionary[FlowBlock, OrderedDict[Hashable, DecodeGraph]] = WeakKeyDictionary()


def can_capture(state: BlockState) -> bool:
    """Return whether the steps of this block can be captured: plain tensors on CUDA, and no capture around them."""
    is_plain = all(
        type(parameter) is nn.Parameter for one in state.networks for parameter in one.block.parameters()
    )
    return state.noise.is_cuda and is_plain and not torch.cuda.is_current_stream_capturing()


def begin_captured(state: BlockState) -> tuple[BlockState, Callable[[int], None]]:
    """Return the state of this run on the buffers of a graph, kept or captured now, and its decode step.

    Raises:
        ConfigError: without CUDA.
    """
    if not state.noise.is_cuda:
        raise ConfigError(
            f"method.step: `cuda_graph` needs a flow on CUDA, found {state.noise.device}; use `eager` or `compiled`"
        )
    kept, key = _KEPT.setdefault(state.block, OrderedDict()), _key(state)
    if key not in kept:
        while len(kept) >= MAX_KEPT:
            kept.popitem(last=False)
        kept[key] = DecodeGraph(state)
    kept.move_to_end(key)
    return kept[key].begin(state)


def release_graphs() -> None:
    """Free all kept graphs and their buffers, the caches among them."""
    _KEPT.clear()


class DecodeGraph:
    """The captured step of a block, with its buffers.

    Args:
        state: the first that will run on it; of a block, rows and types as all others will have.
    """

    def __init__(self, state: BlockState) -> None:
        self._state = _on_own_buffers(state).with_cache()
        self._step = StaticStep(self._state)
        self._casts = [cast for one in self._state.networks for cast in casts_of(one.block)]
        with torch.cuda.device(state.noise.device):
            self._graph = self._capture(*_place(state.noise.device))

    def begin(self, state: BlockState) -> tuple[BlockState, Callable[[int], None]]:
        """Copy a run into the buffers; return its state on them and its step."""
        refresh(self._casts)
        for buffer, value in zip(_contents(self._state), _contents(state), strict=True):
            buffer.copy_(value)
        own = replace(self._state, statistics=state.statistics)
        own.run_prefix()
        self._step.restart()
        return own, functools.partial(self._run, own)

    def _run(self, state: BlockState, step: int) -> None:
        self._step(step)
        state.count(1)

    def _capture(self, stream: torch.cuda.Stream, pool: Any) -> torch.cuda.CUDAGraph:
        """Record a step; what it wrote to the buffers is written again when a run begins."""
        stream.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                self._step.restart()
                self._step.advance()
            self._step.restart()
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            self._step.advance()
        torch.cuda.current_stream().wait_stream(stream)
        self._step.run = graph.replay
        return graph


def _on_own_buffers(state: BlockState) -> BlockState:
    """Return a state with copies of all that a step reads or writes, on weights in the type of their products."""
    weight, guidance = state.block.proj_in.weight, state.guidance
    dtype = product_dtype(weight)
    return replace(
        state,
        # A copy also where nothing is cast: what is kept for a block must not keep the block alive.
        block=copy.copy(state.block) if dtype == weight.dtype else cast_copy(state.block, dtype),
        noise=state.noise.clone(),
        tokens=state.tokens.clone(),
        embedding=tree_map(lambda part: part if part is None else part.clone(), state.embedding),
        rotation=None if state.rotation is None else state.rotation.clone(),
        guidance=None if guidance is None else GuidanceWeights(guidance.rule, guidance.weights.clone()),
        statistics=BlockStatistics(0, "capture"),
        guide=None if state.guide is None else _on_own_buffers(state.guide),
    )


def _contents(state: BlockState) -> list[Tensor]:
    """Return what differs from run to run."""
    parts = [part for one in state.networks for part in (one.noise, one.tokens, *tree_leaves(one.embedding))]
    weights = None if state.guidance is None else state.guidance.weights
    return [part for part in (*parts, weights) if part is not None]


def _key(state: BlockState) -> Hashable:
    """Return what a graph depends on besides the contents of its buffers."""
    rule = None if state.guidance is None else state.guidance.rule
    return (
        tuple((tensor.shape, tensor.dtype) for tensor in _contents(state)),
        tuple(p.data_ptr() for one in state.networks for p in one.block.parameters()),
        product_dtype(state.block.proj_in.weight),
        torch.backends.cuda.matmul.allow_tf32,
        None if rule is None else (type(rule), rule.options.model_dump_json()),
    )


@functools.cache
def _place(device: torch.device) -> tuple[torch.cuda.Stream, Any]:
    """Return the stream to capture on and the memory pool of a device."""
    return torch.cuda.Stream(device=device), torch.cuda.graph_pool_handle()
