"""A decode step whose shapes and addresses never change: for torch.compile, and for capture as a CUDA graph.

A step of a few rows is bound by launching its kernels, not by running them. A graph launches all of them at once;
a compiled step has fewer. The price is that attention reads the whole cache, hidden behind a mask.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from simflow_plugin.errors import ConfigError
from simflow_plugin.flow.affine import Affine
from simflow_plugin.flow.kv_cache import StaticCache
from simflow_plugin.flow.sampling.decode_state import BlockState

WARM_UP_RUNS = 3
"""Runs before a capture, in which libraries allocate their workspaces."""


class StaticStep:
    """One step of a block, run many times on the same buffers.

    Args:
        state: of the block; its prefix is in the cache.
        kind: `static`, `compiled` or `cuda_graph`.
        compile_backend: of torch.compile.

    Raises:
        ConfigError: for a CUDA graph without CUDA.
    """

    def __init__(self, state: BlockState, kind: str, compile_backend: str) -> None:
        self._state = state
        device = state.noise.device
        self._step = torch.zeros(1, dtype=torch.int64, device=device)
        self._inputs = state.noise.new_zeros(state.num_rows, 1, state.noise.shape[2])
        self._positions = state.block.position_rows(0, state.noise.shape[1])
        self._slots = torch.arange(state.num_prefix + state.num_steps, device=device)[None]
        self._run: Callable[[], Affine] = self._evaluate
        if kind == "compiled":
            # Not `fullgraph`: past torch's limit of graphs a process, steps run without instead of failing.
            self._run = torch.compile(self._evaluate, backend=compile_backend)
        if kind == "cuda_graph":
            if not state.noise.is_cuda:
                raise ConfigError(
                    f"method.step: `cuda_graph` needs a flow on CUDA, found {device}; use `eager` or `compiled`"
                )
            self._run = self._capture()

    def __call__(self, step: int) -> Affine:
        """Return the parameters (rows, 1, D) that `step` gives; they are overwritten by the next call."""
        self._step.fill_(step)
        self._inputs.copy_(self._state.inputs(step, step + 1))
        self._state.count(1)
        return self._run()

    def _evaluate(self) -> Affine:
        state = self._state
        slot = self._step + state.num_prefix
        visible = self._slots <= slot
        positions = None if self._positions is None else self._positions.index_select(0, self._step)
        turn = None if state.rotation is None else state.rotation.index_select(0, slot)
        hidden = state.block.embed_inputs(self._inputs, positions, state.embedding)
        caches = [StaticCache(cache.keys, cache.values, slot, visible) for cache in state.cache]
        return state.block.head(state.block.run_layers(hidden, turn, state.embedding, caches, 0))

    def _capture(self) -> Callable[[], Affine]:
        """Record `_evaluate` on the buffers; what warming up writes to the cache, step 0 writes again."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                self._evaluate()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            recorded = self._evaluate()

        def replay() -> Affine:
            graph.replay()
            return recorded

        return replay
