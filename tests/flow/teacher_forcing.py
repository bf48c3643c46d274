"""The oracle for inversions in low precision: each step again in float64, from the inputs that the step was given.

Free-running inversions drift apart, since a step multiplies the rounding of all steps before it: two correct ones in
float32 differ by any amount. One step from given inputs is well conditioned, so its error says whether it is right.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from simflow_plugin.flow import TransformerFlow
from simflow_plugin.flow.sampling import inversion
from simflow_plugin.flow.sampling.decode_state import BlockState


@torch.inference_mode()
def largest_step_error(flow: TransformerFlow, noise: Tensor, **inversion_options: Any) -> float:
    """Invert; return the largest distance of a token from the float64 target of the tokens emitted before it.

    Relative to max(1, the largest token of its block).

    Args:
        flow: of any dtype.
        noise: (B, T, D).
        inversion_options: of `flow.inverse`.
    """
    begun: list[tuple[tuple[Any, ...], BlockState]] = []
    begin = inversion._begin

    def recording(*arguments: Any) -> BlockState:
        state = begin(*arguments)
        begun.append((arguments, state))
        return state

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inversion, "_begin", recording)
        flow.inverse(noise, **inversion_options)
    exact_flow = copy.deepcopy(flow).double()
    errors = []
    for (conditioned, index, block_noise, request, statistics), state in begun:
        rotation = conditioned.rotation
        exact = begin(
            replace(
                conditioned,
                blocks=exact_flow.blocks,
                condition=_double(conditioned.condition),
                rotation=None if rotation is None else rotation.to(torch.complex128),
            ),
            index,
            block_noise.double(),
            replace(request, null_condition=_double(request.null_condition)),
            statistics,
        )
        emitted = state.tokens.double()
        exact.tokens.copy_(emitted)
        exact = exact.prefilled()
        if exact.num_steps == 0:  # a single token that passes unchanged
            continue
        error = (exact.solve(0, exact.num_steps) - emitted[:, exact.block.lag + 1 :]).abs().max()
        errors.append(float(error / emitted.abs().max().clamp(min=1)))
    assert len(begun) == len(flow.blocks)
    return max(errors, default=0.0)


def _double(condition: Tensor | None) -> Tensor | None:
    return condition.double() if condition is not None and condition.is_floating_point() else condition
