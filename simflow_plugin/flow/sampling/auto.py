"""`auto`: per block, the cheaper of `cached` and `jacobi`, measured on the first segments and then kept.

Both are exact up to the tolerance, so nothing is wasted: the measured segments are part of the sample.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from simflow_plugin.flow.sampling.cached import solve_cached
from simflow_plugin.flow.sampling.jacobi import solve_jacobi
from simflow_plugin.flow.sampling.methods import Auto, Jacobi
from simflow_plugin.flow.sampling.state import BlockState


def solve_auto(state: BlockState, method: Auto) -> None:
    """Fill in `state.tokens`; say what was picked in `state.statistics`."""
    jacobi = Jacobi(segment=method.segment, tolerance=method.tolerance, max_iterations=None)
    total, first = state.num_steps, min(method.segment, state.num_steps)
    jacobi_seconds = _seconds(lambda: solve_jacobi(state, jacobi, 0, first), state)
    second = min(2 * first, total)
    if second - first < first:  # nothing to compare with, and little left to gain
        solve_jacobi(state, jacobi, first, total)
        state.statistics.method, state.statistics.reason = (
            "jacobi",
            "the sequence is shorter than two segments",
        )
        return
    cached_seconds = _seconds(lambda: solve_cached(state, first, second), state)
    picks_jacobi = jacobi_seconds < cached_seconds
    state.statistics.method = "jacobi" if picks_jacobi else "cached"
    state.statistics.reason = (
        f"a segment of {first} took {jacobi_seconds:.3f} s by jacobi in {state.statistics.iterations[0]} "
        f"iterations, {cached_seconds:.3f} s by cached"
    )
    if picks_jacobi:
        solve_jacobi(state, jacobi, second, total)
    else:
        solve_cached(state, second, total)


def _seconds(run: Callable[[], None], state: BlockState) -> float:
    if state.noise.is_cuda:
        torch.cuda.synchronize(state.noise.device)
    begin = time.perf_counter()
    run()
    if state.noise.is_cuda:
        torch.cuda.synchronize(state.noise.device)
    return time.perf_counter() - begin
