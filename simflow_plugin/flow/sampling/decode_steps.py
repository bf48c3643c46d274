"""`cached`: decode steps of a block, by eager torch, with fixed shapes, or by the compiled kernel for the CPU.

All fill in the target of a step and write the cache; which one runs changes no more than the last digits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from torch import Tensor

from simflow_plugin.errors import ConfigError
from simflow_plugin.flow.affine import Affine, affine_parameters
from simflow_plugin.flow.kernels.decoder import Decoder, why_not_native
from simflow_plugin.flow.sampling.decode_graph import begin_captured, can_capture
from simflow_plugin.flow.sampling.decode_state import BlockState, join_rows
from simflow_plugin.flow.sampling.methods import Cached
from simflow_plugin.flow.sampling.static_step import StaticStep

DecodeStep = Callable[[int], None]
"""Fills in the target of a step in the state's tokens; the cache holds all earlier steps."""

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
    return "cuda_graph" if can_capture(state) else "eager"


def begin_cached(state: BlockState, method: Cached) -> tuple[BlockState, DecodeStep]:
    """Return a state without a cache with one, through which the prefix has run, and its decode step."""
    kind = step_kind(state, method)
    if kind == "cuda_graph":
        return begin_captured(state)
    state = state.prefilled()
    if kind in ("static", "compiled"):  # a compiler has to see plain weights
        is_compiled = kind == "compiled"
        return state, StaticStep(
            state.cast() if is_compiled else state.packed(), method.compile_backend if is_compiled else None
        )
    evaluate = _evaluation(state, kind, method)

    def decode(step: int) -> None:
        state.store(state.targets(evaluate(step), step, step + 1), step)

    return state, decode


def solve_cached(decode: DecodeStep, first: int, stop: int) -> None:
    """Fill in the targets of steps first : stop, one after the other; the cache holds all earlier steps."""
    for step in range(first, stop):
        decode(step)


def _evaluation(state: BlockState, kind: StepKind, method: Cached) -> Callable[[int], Affine]:
    """Return step -> parameters (rows, 1, D) of a state with a cache; a guide's block has a kind of step itself."""
    if state.guide is not None:
        own = _evaluation(replace(state, guide=None, guidance=None), kind, method)
        weaker = _evaluation(state.guide, step_kind(state.guide, method), method)
        return lambda step: join_rows(own(step), weaker(step))
    if kind == "native":
        return _native_evaluation(state)
    packed = state.packed()
    return lambda step: packed.evaluate(step, step + 1)


def _native_evaluation(state: BlockState) -> Callable[[int], Affine]:
    """Return the same by the compiled kernel, which packs weights itself."""
    decoder = Decoder(state.block, state.cache, state.rotation, state.embedding)

    def evaluate(step: int) -> Affine:
        raw: Tensor = decoder(state.inputs(step, step + 1), step, state.num_prefix + step)
        state.count(1)
        return affine_parameters(raw, state.block.config)

    return evaluate
