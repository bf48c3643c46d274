"""`auto`: per block, `jacobi` where its residuals fall fast enough to beat `cached` here and now, else `cached`.

A few tokens by `cached` give its price per token. Then a short segment is iterated. After each pass, the fall of the
residual forecasts how many more are needed, hence the price of a token by `jacobi`; if it is higher after
`patience` passes, or must be since one pass more is already too dear, the segment is finished by `cached`. All these
tokens are part of the sample: little is wasted.
What is picked depends on the machine's speed, so samples repeat up to the tolerance, not bit for bit.
"""

from __future__ import annotations

import math
import time

import torch

from simflow_plugin.flow.sampling.decode_state import BlockState
from simflow_plugin.flow.sampling.decode_steps import begin_cached, solve_cached
from simflow_plugin.flow.sampling.jacobi import iterate, solve_jacobi
from simflow_plugin.flow.sampling.methods import Auto, Cached, Jacobi

PRICED_STEPS = 6
"""Steps by `cached` that are timed; the first of them is not counted, since it warms up."""

TRIAL_STEPS = 16
"""Steps of the segment that is tried, at most."""


def solve_auto(state: BlockState, method: Auto) -> BlockState:
    """Fill in the tokens, note in `statistics` what was picked and why; return the state that holds them."""
    jacobi = Jacobi(segment=method.segment, tolerance=method.tolerance)
    total = state.num_steps
    state.statistics.method = "cached"
    state, decode = begin_cached(state, Cached())
    if total < PRICED_STEPS + method.segment:
        solve_cached(decode, 0, total)
        state.statistics.reason = "the sequence is too short to try jacobi"
        return state
    solve_cached(decode, 0, 1)
    begin = _now(state)
    solve_cached(decode, 1, PRICED_STEPS)
    cached_price = (_now(state) - begin) / (PRICED_STEPS - 1)
    packed = state.packed()
    jacobi_price, first = _try_segment(packed, jacobi, method.patience, cached_price)
    if jacobi_price < cached_price:
        state.statistics.method = "jacobi"
        solve_jacobi(packed, jacobi, first, total)
    else:
        solve_cached(decode, first, total)
    state.statistics.reason = (
        f"a token took {1e3 * jacobi_price:.2f} ms by jacobi, {1e3 * cached_price:.2f} ms by cached"
    )
    return state


def _try_segment(state: BlockState, jacobi: Jacobi, patience: int, cached_price: float) -> tuple[float, int]:
    """Iterate on a segment while it may pay; return seconds per token, and the first step that is not final."""
    num_steps = min(jacobi.segment, TRIAL_STEPS)
    first, stop = PRICED_STEPS, PRICED_STEPS + num_steps
    passes, begin, previous = 0, _now(state), math.inf
    while first < stop:
        first, residual = iterate(state, jacobi, first, stop)
        passes += 1
        seconds = _now(state) - begin
        price = seconds / (first - PRICED_STEPS)
        needed = passes_to_go(residual, previous, jacobi.tolerance)
        per_pass = seconds / passes / num_steps
        forecast = min(price, (passes + needed) * per_pass)
        at_least = (passes + min(needed, 1)) * per_pass  # an iteration that goes on needs one pass more
        if min(at_least, price) > cached_price or (passes >= patience and forecast > cached_price):
            break
        previous = residual
    state.statistics.iterations.append(passes)
    return price, first


def passes_to_go(residual: float, previous: float, tolerance: float) -> float:
    """Return how many passes a residual that goes on falling as in the last pass needs to reach the tolerance."""
    if residual <= tolerance:
        return 0.0
    if not residual < previous < math.inf or tolerance == 0:
        return math.inf
    return math.log(tolerance / residual) / math.log(residual / previous)


def _now(state: BlockState) -> float:
    """Return the time in seconds when all work so far is done."""
    if state.noise.is_cuda:
        torch.cuda.synchronize(state.noise.device)
    return time.perf_counter()
