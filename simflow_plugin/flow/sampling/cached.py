"""`cached`: one token after the other, each a single step over the KV cache."""

from __future__ import annotations

from simflow_plugin.flow.sampling.decode_state import BlockState
from simflow_plugin.flow.sampling.decode_steps import DecodeStep


def solve_cached(state: BlockState, decode: DecodeStep, first: int, stop: int) -> None:
    """Fill in the targets of steps first : stop; the cache holds all earlier steps."""
    for step in range(first, stop):
        state.store(state.targets(decode(step), step, step + 1), step)
