"""Attention backends by name: `sdpa` (default), `xformers`, and `auto`, which picks between them."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from simflow_plugin.errors import ConfigError
from simflow_plugin.options import Options
from simflow_plugin.registry import ATTENTION

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AttentionContext:
    """What a flow tells its attention backend: `head_dim`, channels of a head."""

    head_dim: int


class AttentionBackend(Protocol):
    """Stateless causal attention, used by training and by sampling alike."""

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend; query i of n sees keys 0 .. S - n + i.

        Args:
            queries: (B, H, n, d), the last n of S positions.
            keys: (B, G, S, d), rotated; G divides H (grouped queries), n <= S.
            values: (B, G, S, d).
        Returns:
            (B, H, n, d).
        """
        ...


def build_attention(name: str, context: AttentionContext) -> AttentionBackend:
    """Return the backend registered as `name`.

    Raises:
        RegistryError: for an unknown name, listing the known ones.
    """
    factory = ATTENTION.get(name)
    return factory(factory.Options(), context)


@ATTENTION.register("sdpa")
class SdpaAttention:
    """torch's scaled_dot_product_attention: everywhere, with flash kernels where torch has them."""

    Options = Options

    def __init__(self, options: Options, context: AttentionContext) -> None:
        """Neither is needed: torch picks its kernel by itself."""

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        num_queries, length = queries.shape[2], keys.shape[2]
        is_grouped = queries.shape[1] != keys.shape[1]
        if num_queries == length:
            return scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=is_grouped)
        if num_queries == 1:  # the newest position sees all
            return scaled_dot_product_attention(queries, keys, values, enable_gqa=is_grouped)
        mask = bottom_right_mask(num_queries, length, queries.device)
        return scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=is_grouped)


def bottom_right_mask(num_queries: int, length: int, device: torch.device) -> Tensor:
    """Return (n, S) bool, True where a query (the last n positions) may look.

    torch's `is_causal` aligns the triangle to the top left, which is right for n = S only.
    """
    return torch.ones(num_queries, length, dtype=torch.bool, device=device).tril(length - num_queries)


@ATTENTION.register("xformers")
class XformersAttention:
    """xformers' memory_efficient_attention, imported when the backend is built.

    Training uses `LowerTriangularMask`; decoding over a cache uses no bias for one query and
    `LowerTriangularFromBottomRightMask` for several. Grouped queries use the form (B, S, G, H / G, d).

    Raises:
        ConfigError: if xformers is not installed or does not load.
    """

    Options = Options

    def __init__(self, options: Options, context: AttentionContext) -> None:
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


@ATTENTION.register("auto")
class AutoAttention:
    """xformers on CUDA where its build works, else sdpa; one log line names the choice and its reason.

    CPU tensors always go to sdpa, since a flow may be built before it is moved.
    """

    Options = Options

    def __init__(self, options: Options, context: AttentionContext) -> None:
        self.sdpa = SdpaAttention(options, context)
        self.xformers: XformersAttention | None = None
        reason = why_not_xformers(context)
        if reason is None:
            self.xformers = XformersAttention(options, context)
        _log_choice("xformers" if reason is None else "sdpa", reason or "its build works on this CUDA device")

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        backend = self.xformers if self.xformers is not None and queries.is_cuda else self.sdpa
        return backend(queries, keys, values)


def why_not_xformers(context: AttentionContext) -> str | None:
    """Return why xformers cannot be used here, or None if it can: it is tried on a few numbers."""
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    try:
        backend = XformersAttention(Options(), context)
        probe = torch.zeros(1, 1, 2, context.head_dim, device="cuda", dtype=torch.float16)
        backend(probe, probe, probe)
    except ConfigError as error:
        return str(error)
    except (RuntimeError, NotImplementedError, ValueError) as error:  # no kernel for this device or head size
        return f"xformers has no kernel here ({error})"
    return None


@functools.cache  # one line per outcome, not one per flow
def _log_choice(name: str, reason: str) -> None:
    logger.info("attention: auto picked %s: %s", name, reason)
