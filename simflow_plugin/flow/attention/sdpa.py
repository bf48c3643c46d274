"""Attention by torch's scaled_dot_product_attention: everywhere, with flash kernels where torch has them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from simflow_plugin.flow.attention.backend import AttentionContext
from simflow_plugin.registry import ATTENTION


@ATTENTION.register("sdpa")
class SdpaAttention:
    """See `AttentionBackend`."""

    def __init__(self, context: AttentionContext) -> None:
        del context  # torch picks its kernel by itself

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        if is_slow_half(queries):
            with torch.autocast("cpu", enabled=False):
                return self(queries.float(), keys.float(), values.float()).to(values.dtype)
        num_queries, length = queries.shape[2], keys.shape[2]
        is_grouped = queries.shape[1] != keys.shape[1]
        if num_queries == length:
            return scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=is_grouped)
        if num_queries == 1:  # the newest position sees all
            return scaled_dot_product_attention(queries, keys, values, enable_gqa=is_grouped)
        mask = bottom_right_mask(num_queries, length, queries.device)
        return scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=is_grouped)


def is_slow_half(queries: Tensor) -> bool:
    """Return whether attention is better computed in float32: half types on a CPU.

    torch's backward pass there took four times as long in bfloat16 as in float32 (AMD EPYC with AVX-512, torch 2.14).
    """
    return queries.device.type == "cpu" and queries.dtype in (torch.bfloat16, torch.float16)


def bottom_right_mask(num_queries: int, length: int, device: torch.device) -> Tensor:
    """Return (n, S) bool, True where a query (the last n positions) may look.

    torch's `is_causal` aligns the triangle to the top left, which is right for n = S only.
    """
    return torch.ones(num_queries, length, dtype=torch.bool, device=device).tril(length - num_queries)
