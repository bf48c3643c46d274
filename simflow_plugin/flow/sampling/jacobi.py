"""`jacobi`: all tokens of a segment at once, from a guess, until none changes; then the next segment.

Token t depends on earlier tokens only, so after k iterations the first k tokens of every segment are exact, given the
tokens before it and whatever the guess. Tokens that have settled, and all before them have too, leave the iteration:
the passes get shorter. A segment that is cut off before it settles is emitted as it stands, and one pass more renews
its keys: later segments condition on what was emitted.
Reference: Song et al., arXiv:2002.03629 (Jacobi and Gauss-Seidel for feed-forward computation).
"""

from __future__ import annotations

import math
from itertools import takewhile

from torch import Tensor

from simflow_plugin.flow.sampling.decode_state import BlockState
from simflow_plugin.flow.sampling.methods import Jacobi

GUESS_LIMIT = 1e4
"""Far beyond any token; only guesses are bounded, also where they are emitted, never a token that has settled."""


def solve_jacobi(state: BlockState, method: Jacobi, first: int, stop: int) -> None:
    """Fill in the targets of steps first : stop, segment by segment."""
    for begin in range(first, stop, method.segment):
        solve_segment(state, method, begin, min(begin + method.segment, stop))


def solve_segment(state: BlockState, method: Jacobi, first: int, stop: int) -> None:
    """Iterate on one segment. The first guess is what `state.tokens` holds: noise, the identity's answer."""
    limit = method.max_iterations or stop - first
    iterations, change = 0, 0.0
    while first < stop and iterations < limit:
        first, change = iterate(state, method, first, stop)
        iterations += 1
    state.statistics.iterations.append(iterations)
    if first < stop:
        state.statistics.residual = max(state.statistics.residual, change)
        if stop < state.num_steps:
            # The last pass saw the guesses before these; whoever comes next must see the tokens that are emitted.
            state.evaluate(first, stop)


def iterate(state: BlockState, method: Jacobi, first: int, stop: int) -> tuple[int, float]:
    """Run one pass over steps first : stop.

    Returns:
        The first step whose target is not final yet, and the largest change of a token in this pass.
    """
    begin = first + state.block.lag + 1
    old = state.tokens[:, begin : begin + stop - first]
    new = state.solve(first, stop)
    changes = token_change(old, new).tolist()  # the only wait for the device in a pass
    # A token is final if its inputs were: the first one's always are, the next one's if the first did not
    # change, and so on. Its own change does not matter.
    num_final = 1 + sum(1 for _ in takewhile(lambda change: change <= method.tolerance, changes[:-1]))
    state.statistics.residual = max([state.statistics.residual, *changes[: num_final - 1]])
    state.store(new[:, :num_final], first)
    if num_final < stop - first:
        state.store(_tame(new[:, num_final:]), first + num_final)
    return first + num_final, max(changes)


def _tame(guesses: Tensor) -> Tensor:
    """Bound guesses: one that overflows would turn the keys behind the mask into NaN, and 0 NaN is NaN."""
    return guesses.nan_to_num(nan=0.0).clamp(-GUESS_LIMIT, GUESS_LIMIT)


def token_change(old: Tensor, new: Tensor) -> Tensor:
    """Return the change (n,) of each token, the largest over rows and channels, over max(1, its size).

    Infinite where a guess overflowed.
    """
    size = new.abs().amax(dim=(0, 2)).clamp(min=1.0)
    change = (new - old).abs().amax(dim=(0, 2)) / size
    return change.nan_to_num(nan=math.inf, posinf=math.inf)
