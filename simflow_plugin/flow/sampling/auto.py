"""`auto`: per block, `jacobi` where its residuals fall fast enough to beat `cached` here and now, else `cached`.

A few tokens by `cached` give its price per token. Then a segment is iterated; after each pass, the price of a
token by `jacobi` is the time spent over the tokens whose residual has vanished. If that is still higher after
`patience` passes, the segment is finished by `cached`. All these tokens are part of the sample: little is wasted.
What is picked depends on the machine's speed, so samples repeat up to the tolerance, not bit for bit.
"""

from __future__ import annotations

import time

import torch

from simflow_plugin.flow.sampling.cached import solve_cached
from simflow_plugin.flow.sampling.jacobi import iterate, solve_jacobi
from simflow_plugin.flow.sampling.methods import Auto, Jacobi
from simflow_plugin.flow.sampling.state import BlockState

PRICED_STEPS = 6
"""Steps by `cached` that are timed; the first of them is not counted, since it warms up."""


def solve_auto(state: BlockState, method: Auto) -> None:
    """Fill in `state.tokens`; say what was picked, and why, in `state.statistics`."""
    jacobi = Jacobi(segment=method.segment, tolerance=method.tolerance, max_iterations=None)
    total = state.num_steps
    state.statistics.method = "cached"
    if total < PRICED_STEPS + method.segment:
        solve_cached(state, 0, total)
        state.statistics.reason = "the sequence is too short to try jacobi"
        return
    solve_cached(state, 0, 1)
    begin = _now(state)
    solve_cached(state, 1, PRICED_STEPS)
    cached_price = (_now(state) - begin) / (PRICED_STEPS - 1)
    jacobi_price, first = _try_segment(state, jacobi, method.patience, cached_price)
    if jacobi_price < cached_price:
        state.statistics.method = "jacobi"
        solve_jacobi(state, jacobi, first, total)
    else:
        solve_cached(state, first, total)
    state.statistics.reason = (
        f"a token took {1e3 * jacobi_price:.2f} ms by jacobi, {1e3 * cached_price:.2f} ms by cached"
    )


def _try_segment(state: BlockState, jacobi: Jacobi, patience: int, cached_price: float) -> tuple[float, int]:
    """Iterate on a segment while it pays; return seconds per token, and the first step that is not final."""
    first, stop = PRICED_STEPS, PRICED_STEPS + jacobi.segment
    passes, begin = 0, _now(state)
    while first < stop:
        first = iterate(state, jacobi, first, stop)
        passes += 1
        price = (_now(state) - begin) / (first - PRICED_STEPS)
        if passes >= patience and price > cached_price:
            break
    state.statistics.iterations.append(passes)
    return price, first


def _now(state: BlockState) -> float:
    """Return the time in seconds when all work so far is done."""
    if state.noise.is_cuda:
        torch.cuda.synchronize(state.noise.device)
    return time.perf_counter()
