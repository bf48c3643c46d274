"""A decode step whose shapes and addresses never change: for torch.compile, and for capture as a CUDA graph.

A step of a few rows is bound by launching its kernels, not by running them. A graph launches all of them at once;
a compiled step has fewer. The price is that attention reads the whole cache, hidden behind a mask.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from simflow_plugin.flow.affine import affine_inverse
from simflow_plugin.flow.kv_cache import StaticCache
from simflow_plugin.flow.sampling.decode_state import BlockState


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
        self._positions = state.block.position_rows(0, state.noise.shape[1])
        self._slots = torch.arange(state.num_prefix + state.num_steps, device=device)[None]
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
        """Fill in the target of the step that the device's number says, and add one to it."""
        state, target = self._state, self._number + self._state.block.lag
        slot = self._number + state.num_prefix
        visible = self._slots <= slot
        positions = None if self._positions is None else self._positions.index_select(0, self._number)
        turn = None if state.rotation is None else state.rotation.index_select(0, slot)
        inputs = state.tokens.index_select(1, target)
        if state.guidance is not None:
            inputs = torch.cat([inputs, inputs])
        hidden = state.block.embed_inputs(inputs, positions, state.embedding)
        caches = [StaticCache(cache.keys, cache.values, slot, visible) for cache in state.cache]
        affine = state.block.head(state.block.run_layers(hidden, turn, state.embedding, caches, 0))
        if state.guidance is not None:
            affine = state.guidance.combine_at(affine, target)
        tokens = affine_inverse(state.noise.index_select(1, target), affine)
        state.tokens.index_copy_(1, target + 1, tokens.to(state.tokens.dtype))
        self._number.add_(1)
