"""A decode step whose shapes and addresses never change: for torch.compile, and for capture as a CUDA graph.

A step of a few rows is bound by launching its kernels, not by running them. A graph launches all of them at once;
a compiled step has fewer. The price is that attention reads all of the cache, hidden behind a mask.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from simflow_plugin.flow.affine import Affine, affine_inverse
from simflow_plugin.flow.kv_cache import StaticCache
from simflow_plugin.flow.sampling.decode_state import BlockState, join_rows


class StaticStep:
    """One step of a block, run many times on the same buffers; the number of the step is on the device too.

    Args:
        state: of the block; its prefix is in the cache.
        compile_backend: of torch.compile; None runs torch eagerly.
    """

    def __init__(self, state: BlockState, compile_backend: str | None = None) -> None:
        self._state = state
        device = state.noise.device
        self._number = torch.zeros(1, dtype=torch.int64, device=device)
        self._next = 0
        self._networks = [_Network(one) for one in state.networks]
        self.run: Callable[[], None] = self.advance
        if compile_backend is not None:
            # Not `fullgraph`: past torch's limit of graphs a process, steps run without instead of failing.
            self.run = torch.compile(self.advance, backend=compile_backend)

    def __call__(self, step: int) -> None:
        """Fill in the target of `step`; steps in a row need nothing from the host but the launch."""
        if step != self._next:
            self._number.fill_(step)
        self._next = step + 1
        self._state.count(1)
        self.run()

    def restart(self) -> None:
        """Go back to step 0."""
        self._number.zero_()
        self._next = 0

    def advance(self) -> None:
        """Fill in the target of the step whose number is on the device, and add one to it."""
        state, number = self._state, self._number
        target = number + state.block.lag
        affine = join_rows(*(network.evaluate(number) for network in self._networks))
        if state.guidance is not None:
            affine = state.guidance.combine_at(affine, target)
        tokens = affine_inverse(state.noise.index_select(1, target), affine).to(state.tokens.dtype)
        for network in self._networks:
            network.store(tokens, number)
        number.add_(1)


class _Network:
    """One block over its cache, at the step whose number is on the device; a guide's is a second one."""

    def __init__(self, state: BlockState) -> None:
        self._state = state
        self._positions = state.block.position_rows(0, state.noise.shape[1])
        self._slots = torch.arange(state.num_prefix + state.num_steps, device=state.noise.device)[None]

    def evaluate(self, number: Tensor) -> Affine:
        """Return the parameters (rows, 1, D) that step `number` (1,) int64 gives; write the cache."""
        state = self._state
        slot = number + state.num_prefix
        visible = self._slots <= slot
        positions = None if self._positions is None else self._positions.index_select(0, number)
        turn = None if state.rotation is None else state.rotation.index_select(0, slot)
        inputs = state.tokens.index_select(1, number + state.block.lag)
        if state.has_null_rows:
            inputs = torch.cat([inputs, inputs])
        hidden = state.block.embed_inputs(inputs, positions, state.embedding)
        caches = [StaticCache(cache.keys, cache.values, slot, visible) for cache in state.cache]
        return state.block.head(state.block.run_layers(hidden, turn, state.embedding, caches, 0))

    def store(self, tokens: Tensor, number: Tensor) -> None:
        """Write the target (B, 1, D) of step `number`."""
        self._state.tokens.index_copy_(1, number + self._state.block.lag + 1, tokens)
