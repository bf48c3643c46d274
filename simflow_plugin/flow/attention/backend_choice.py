"""Choice of the backend: xformers on CUDA for what its build can run, else sdpa; the choice and its reason are logged.

What a build can run depends on the compute type, on grouped queries, on gradients and on the device. The compute type
is known only when tensors arrive (under autocast it is not the weights'), so every case is tried when a flow is built.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from simflow_plugin.errors import ConfigError
from simflow_plugin.flow.attention.backend import AttentionContext
from simflow_plugin.flow.attention.sdpa import SdpaAttention
from simflow_plugin.flow.attention.xformers import XformersAttention, needs_gradient
from simflow_plugin.registry import ATTENTION

logger = logging.getLogger(__name__)

COMPUTE_TYPES = (torch.float32, torch.bfloat16, torch.float16)
PROBED_LENGTHS = ((8, 8), (1, 9), (4, 9), (1, 257), (4, 257))
"""(queries, keys): a sequence at once, decode steps and Jacobi passes; past 256 keys xformers prefers others."""


class Case(NamedTuple):
    """Facts that the choice depends on, for a given flow and device."""

    dtype: torch.dtype
    needs_gradient: bool

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return f"{name} with gradients" if self.needs_gradient else name


ALL_CASES = tuple(Case(dtype, gradient) for dtype in COMPUTE_TYPES for gradient in (True, False))


@ATTENTION.register("auto")
class AutoAttention:
    """See `AttentionBackend`. CPU tensors always go to sdpa, since a flow may be built before it is moved."""

    def __init__(self, context: AttentionContext) -> None:
        self.sdpa = SdpaAttention(context)
        self.xformers: XformersAttention | None = None
        reason = why_not_xformers(context)
        self.refused: Mapping[Case, str] = {} if reason is not None else refused_cases(context)
        if reason is None and len(self.refused) == len(ALL_CASES):
            reason = f"xformers has no operator here ({next(iter(self.refused.values()))})"
        if reason is None:
            self.xformers = XformersAttention(context)
        _say(reason, tuple(self.refused.items()))

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return self.backend_of(queries, keys, values)(queries, keys, values)

    def backend_of(self, queries: Tensor, keys: Tensor, values: Tensor) -> SdpaAttention | XformersAttention:
        """Return the backend that attends with these tensors."""
        case = Case(queries.dtype, needs_gradient(queries, keys, values))
        # The gradients of xformers' operators are sums in no fixed order; torch's own keep the order when asked to.
        if case.needs_gradient and torch.are_deterministic_algorithms_enabled():
            return self.sdpa
        if self.xformers is None or not queries.is_cuda or case not in ALL_CASES or case in self.refused:
            return self.sdpa
        return self.xformers


def why_not_xformers(context: AttentionContext) -> str | None:
    """Return why xformers cannot be used here at all, or None."""
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    try:
        XformersAttention(context)
    except ConfigError as error:
        return str(error)
    return None


def refused_cases(context: AttentionContext) -> dict[Case, str]:
    """Return the cases that this build of xformers cannot run on this device, each with its reason."""
    backend = XformersAttention(context)
    reasons = {case: _why_refused(backend, context, case) for case in ALL_CASES}
    return {case: reason for case, reason in reasons.items() if reason is not None}


def _why_refused(backend: XformersAttention, context: AttentionContext, case: Case) -> str | None:
    try:
        for num_queries, length in PROBED_LENGTHS[:1] if case.needs_gradient else PROBED_LENGTHS:
            _probe(backend, context, case, num_queries, length)
    except (
        ConfigError,
        RuntimeError,
        ValueError,
    ) as error:  # no operator, or none that this device can launch
        return str(error)
    return None


@torch.inference_mode(False)
def _probe(
    backend: XformersAttention, context: AttentionContext, case: Case, num_queries: int, length: int
) -> None:
    """Attend with zeros, and back where gradients are asked for."""

    def zeros(heads: int, positions: int) -> Tensor:
        shape = (1, heads, positions, context.head_dim)
        return torch.zeros(shape, device="cuda", dtype=case.dtype, requires_grad=case.needs_gradient)

    keys, values = zeros(context.key_heads, length), zeros(context.key_heads, length)
    with torch.autocast("cuda", enabled=False), torch.set_grad_enabled(case.needs_gradient):
        output = backend(zeros(context.query_heads, num_queries), keys, values)
        if case.needs_gradient:
            torch.autograd.grad(output.sum(), (keys, values))


@functools.cache  # one line per outcome, not one per flow
def _say(reason: str | None, refused: tuple[tuple[Case, str], ...]) -> None:
    if reason is not None:
        logger.info("attention: auto picked sdpa: %s", reason)
        return
    logger.info("attention: auto picked xformers: its build works on this CUDA device")
    for case, why in refused:
        logger.info("attention: auto picked sdpa for %s: %s", case, why)
