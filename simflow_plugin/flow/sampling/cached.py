"""`cached`: one token after the other, each a single step over the KV cache."""

from __future__ import annotations

from simflow_plugin.flow.sampling.state import BlockState


def solve_cached(state: BlockState, first: int, stop: int) -> None:
    """Fill in the targets of steps first : stop; the cache holds all earlier steps."""
    for step in range(first, stop):
        state.store(state.solve(step, step + 1), step)
