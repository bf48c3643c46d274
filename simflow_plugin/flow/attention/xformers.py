"""Attention by xformers' memory_efficient_attention, imported when the backend is built.

Training uses `LowerTriangularMask`; decoding over a cache uses no bias for one query and
`LowerTriangularFromBottomRightMask` for several. Grouped queries use the form (B, S, G, H / G, d), which shares keys
without copying them but has no backward operator (xformers 0.0.35): with gradients, keys are repeated instead.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from simflow_plugin.errors import ConfigError
from simflow_plugin.flow.attention.backend import AttentionContext
from simflow_plugin.registry import ATTENTION


class Operators(NamedTuple):
    """The three names of xformers that are used."""

    memory_efficient_attention: Any
    LowerTriangularMask: Any
    LowerTriangularFromBottomRightMask: Any


@ATTENTION.register("xformers")
class XformersAttention:
    """See `AttentionBackend`.

    Raises:
        ConfigError: if xformers is not installed, or its library does not load; when it is called, if it has no
            operator for the type of the tensors on this device, or its gradients must be deterministic.
    """

    def __init__(self, context: AttentionContext) -> None:
        del context
        self._ops = load_xformers()

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        if torch.are_deterministic_algorithms_enabled() and needs_gradient(queries, keys, values):
            raise ConfigError(
                "flow.attention: xformers sums gradients in no fixed order, so training.deterministic cannot hold. "
                "Use `attention: sdpa` or `auto`, or set training.deterministic: false."
            )
        num_queries, length = queries.shape[2], keys.shape[2]
        bias = None
        if num_queries == length:
            bias = self._ops.LowerTriangularMask()
        elif num_queries > 1:
            bias = self._ops.LowerTriangularFromBottomRightMask()
        groups, heads = keys.shape[1], queries.shape[1]
        q, k, v = (tensor.transpose(1, 2) for tensor in (queries, keys, values))  # (B, S, H, d)
        if groups == heads:
            return self._attend(q, k, v, bias).transpose(1, 2)
        if needs_gradient(queries, keys, values):
            k, v = (part.repeat_interleave(heads // groups, dim=2) for part in (k, v))
            return self._attend(q, k, v, bias).transpose(1, 2)
        shared = (-1, -1, -1, heads // groups, -1)
        k, v = (part.unsqueeze(3).expand(shared) for part in (k, v))
        return self._attend(q.unflatten(2, (groups, -1)), k, v, bias).flatten(2, 3).transpose(1, 2)

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, bias: Any) -> Tensor:
        try:
            return self._ops.memory_efficient_attention(queries, keys, values, attn_bias=bias)
        except NotImplementedError as error:
            raise ConfigError(
                f"flow.attention: xformers has no operator for {queries.dtype} on {queries.device} "
                f"({reasons_of(error)}). Use `attention: auto`, which asks first, or `sdpa`."
            ) from error


def needs_gradient(*tensors: Tensor) -> bool:
    """Return whether autograd records what is done with these tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def reasons_of(error: Exception) -> str:
    """Return xformers' reasons on one line, without its description of the inputs."""
    lines = [line.strip() for line in str(error).splitlines()]
    reasons = [
        line for line in lines if line and not line.startswith(("query", "key", "value", "attn_bias", "p  "))
    ]
    return "; ".join(reasons)[:400]


def load_xformers() -> Operators:
    """Return xformers' attention function and its two causal biases.

    Raises:
        ConfigError: if xformers is not installed, or its build does not match torch's.
    """
    try:
        from xformers import _cpp_lib, ops
        from xformers.ops import fmha
    except Exception as error:  # a build for another torch fails with ImportError, OSError or RuntimeError
        raise ConfigError(_does_not_load(f"{type(error).__name__}: {error}")) from error
    # A wheel for another torch imports, logs a warning, and refuses every tensor later.
    failure = getattr(_cpp_lib, "_cpp_library_load_exception", None)
    if failure is not None:
        raise ConfigError(_does_not_load(" ".join(str(failure).split()))) from failure
    return Operators(
        ops.memory_efficient_attention,
        fmha.attn_bias.LowerTriangularMask,
        fmha.attn_bias.LowerTriangularFromBottomRightMask,
    )


def _does_not_load(reason: str) -> str:
    return (
        f"flow.attention: xformers does not load ({reason}). Its wheels fit one version of torch each (0.0.35: torch "
        "2.10 for CUDA 12.8): install the pair, build it from source for this torch, or use `attention: sdpa`."
    )
