"""Attention by xformers' memory_efficient_attention, imported when the backend is built.

Training uses `LowerTriangularMask`; decoding over a cache uses no bias for one query and
`LowerTriangularFromBottomRightMask` for several. Grouped queries use the form (B, S, G, H / G, d).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from simflow_plugin.errors import ConfigError
from simflow_plugin.flow.attention.backend import AttentionContext
from simflow_plugin.registry import ATTENTION


@ATTENTION.register("xformers")
class XformersAttention:
    """See `AttentionBackend`.

    Raises:
        ConfigError: if xformers is not installed or does not load.
    """

    def __init__(self, context: AttentionContext) -> None:
        del context
        self._ops = load_xformers()

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        num_queries, length = queries.shape[2], keys.shape[2]
        bias = None
        if num_queries == length:
            bias = self._ops.LowerTriangularMask()
        elif num_queries > 1:
            bias = self._ops.LowerTriangularFromBottomRightMask()
        groups, heads = keys.shape[1], queries.shape[1]
        q, k, v = (tensor.transpose(1, 2) for tensor in (queries, keys, values))  # (B, S, H, d)
        if groups == heads:
            return self._ops.memory_efficient_attention(q, k, v, attn_bias=bias).transpose(1, 2)
        shared = (-1, -1, -1, heads // groups, -1)
        output = self._ops.memory_efficient_attention(
            q.unflatten(2, (groups, heads // groups)),
            k.unsqueeze(3).expand(shared),
            v.unsqueeze(3).expand(shared),
            attn_bias=bias,
        )
        return output.flatten(2, 3).transpose(1, 2)


def load_xformers() -> Any:
    """Return a namespace with xformers' attention function and its two causal biases.

    Raises:
        ConfigError: if xformers is not installed, or its build does not match torch's.
    """
    try:
        from xformers import ops
        from xformers.ops import fmha
    except Exception as error:  # a build for another torch fails with ImportError, OSError or RuntimeError
        raise ConfigError(
            f"flow.attention: xformers does not load ({type(error).__name__}: {error}). Install the build "
            "for this torch (`pip install simflow-plugin[xformers]`), or use `attention: sdpa`."
        ) from error
    return _Ops(
        ops.memory_efficient_attention,
        fmha.attn_bias.LowerTriangularMask,
        fmha.attn_bias.LowerTriangularFromBottomRightMask,
    )


class _Ops:
    """The three names of xformers that are used, so that a test can put a reference in their place."""

    def __init__(self, attention: Any, lower_triangular: Any, from_bottom_right: Any) -> None:
        self.memory_efficient_attention = attention
        self.LowerTriangularMask = lower_triangular
        self.LowerTriangularFromBottomRightMask = from_bottom_right
