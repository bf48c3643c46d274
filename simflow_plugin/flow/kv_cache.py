"""The KV cache of a layer: allocated once per sampling run, passed in, written in place.

`LayerCache` is read up to the newest position, so its views grow. `StaticCache` is the same memory with a position
that is a tensor: all shapes stay fixed, as a compiled step and a CUDA graph need it, and a mask hides the rest.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from simflow_plugin.flow.architecture import FlowConfig


class LayerCache(NamedTuple):
    """Keys (already rotated) and values of one layer, (B, H, S, d); what was written is valid."""

    keys: Tensor
    values: Tensor


class StaticCache(NamedTuple):
    """A layer's cache for steps of one position: `slot` (1,) int64 is written, `visible` (1, S) bool is read."""

    keys: Tensor
    values: Tensor
    slot: Tensor
    visible: Tensor


def attend_static(queries: Tensor, keys: Tensor, values: Tensor, cache: StaticCache) -> Tensor:
    """Write keys and values (B, G, 1, d) to the slot; attend with queries (B, H, 1, d) to what is visible."""
    cache.keys.index_copy_(2, cache.slot, keys.to(cache.keys.dtype))
    cache.values.index_copy_(2, cache.slot, values.to(cache.values.dtype))
    is_grouped = queries.shape[1] != keys.shape[1]
    return scaled_dot_product_attention(
        queries, cache.keys, cache.values, attn_mask=cache.visible, enable_gqa=is_grouped
    )


def product_dtype(weight: Tensor) -> torch.dtype:
    """Return the type in which autocast, where it is on, has products with this weight; else the weight's own."""
    kind = weight.device.type
    # The meta device, on which compute is counted, has no autocast of its own.
    if weight.is_meta or weight.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return weight.dtype
    return torch.get_autocast_dtype(kind)


def allocate_cache(
    config: FlowConfig, num_layers: int, rows: int, length: int, weight: Tensor
) -> list[LayerCache]:
    """Return an empty cache for `rows` sequences of `length` positions, in the type of products with `weight`.

    That is the queries' type: attention kernels take one, and would cast all of the cache at every step.
    """
    shape = (rows, config.key_heads, length, config.head_dim)
    dtype = product_dtype(weight)
    return [
        LayerCache(weight.new_zeros(shape, dtype=dtype), weight.new_zeros(shape, dtype=dtype))
        for _ in range(num_layers)
    ]


def write(cache: LayerCache, keys: Tensor, values: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """Write keys and values (B, H, n, d) at positions start : start + n; return all up to there as views."""
    num_new = keys.shape[2]
    cache.keys.narrow(2, start, num_new).copy_(keys)
    cache.values.narrow(2, start, num_new).copy_(values)
    stop = start + num_new
    return cache.keys.narrow(2, 0, stop), cache.values.narrow(2, 0, stop)
