"""Decode steps of a block: eager torch, fixed shapes, or the compiled kernel for the CPU.

All map the input of a step to its affine parameters and write the cache; which one runs changes no more than
the last digits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from torch import Tensor

from simflow_plugin.errors import ConfigError
from simflow_plugin.flow.affine import Affine, affine_parameters
from simflow_plugin.flow.kernels.decoder import Decoder, why_not_native
from simflow_plugin.flow.sampling.decode_state import BlockState, join_rows
from simflow_plugin.flow.sampling.methods import Cached
from simflow_plugin.flow.sampling.static_step import StaticStep

DecodeStep = Callable[[int], Affine]
"""step -> parameters (rows, 1, D); the cache holds all earlier steps. The next call may overwrite the result."""

StepKind = Literal["native", "eager", "static", "compiled", "cuda_graph"]


def step_kind(state: BlockState, method: Cached) -> StepKind:
    """Return how the steps of this block run; `auto` is settled.

    Raises:
        ConfigError: for `native` where it cannot run.
    """
    if method.step != "auto" and method.step != "native":
        return method.step
    reason = why_not_native(state.block, state.num_rows)
    if reason is None:
        return "native"
    if method.step == "native":
        raise ConfigError(f"method.step: `native` cannot run here: {reason}; use `auto` or `eager`")
    return "eager"


def make_step(state: BlockState, method: Cached) -> DecodeStep:
    """Return the decode step of a block.

    Args:
        state: its prefix is in the cache; its weights are not packed.
        method: how steps run.
    """
    if state.guide is not None:
        own, weaker = (
            make_step(replace(state, guide=None, guidance=None), method),
            make_step(state.guide, method),
        )
        return lambda step: join_rows(own(step), weaker(step))
    kind = step_kind(state, method)
    if kind == "native":  # packs weights its own way
        return NativeStep(state)
    if kind == "eager":
        packed = state.packed()
        return lambda step: packed.evaluate(step, step + 1)
    # A compiler and a graph have to see plain weights.
    return StaticStep(state.packed() if kind == "static" else state, kind, method.compile_backend)


class NativeStep:
    """One step by the compiled kernel.

    Args:
        state: of the block, with weights that are not packed.
    """

    def __init__(self, state: BlockState) -> None:
        self._state = state
        self._decoder = Decoder(state.block, state.cache, state.rotation, state.embedding)

    def __call__(self, step: int) -> Affine:
        state = self._state
        raw: Tensor = self._decoder(state.inputs(step, step + 1), step, state.num_prefix + step)
        state.count(1)
        return affine_parameters(raw, state.block.config)
