"""`cached`: one token after the other, each a single step over the KV cache."""

from __future__ import annotations

from simflow_plugin.flow.sampling.methods import Cached
from simflow_plugin.flow.sampling.state import BlockState
from simflow_plugin.flow.sampling.static_step import StaticStep

EAGER = Cached(step="eager", compile_backend="inductor")


def solve_cached(state: BlockState, first: int, stop: int, method: Cached = EAGER) -> None:
    """Fill in the targets of steps first : stop; the cache holds all earlier steps."""
    if method.step == "eager":
        for step in range(first, stop):
            state.store(state.solve(step, step + 1), step)
        return
    static_step = StaticStep(state, method)
    for step in range(first, stop):
        affine = static_step(step, state.inputs(step, step + 1))
        state.store(state.targets(affine, step, step + 1), step)
        state.count(1)
