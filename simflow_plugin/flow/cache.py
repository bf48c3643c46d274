"""The KV cache of one block: allocated once per sampling run, passed in, written in place."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from simflow_plugin.flow.config import FlowConfig


class LayerCache(NamedTuple):
    """Keys (already rotated) and values of one layer, (B, H, S, d); what was written is valid."""

    keys: Tensor
    values: Tensor


def allocate_cache(
    config: FlowConfig, num_layers: int, rows: int, length: int, like: Tensor
) -> list[LayerCache]:
    """Return an empty cache for `rows` sequences of `length` positions, in dtype and device of `like`."""
    shape = (rows, config.key_heads, length, config.head_dim)
    return [LayerCache(like.new_empty(shape), like.new_empty(shape)) for _ in range(num_layers)]


def write(cache: LayerCache, keys: Tensor, values: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """Write keys and values (B, H, n, d) at positions start : start + n; return all up to there as views."""
    num_new = keys.shape[2]
    cache.keys.narrow(2, start, num_new).copy_(keys)
    cache.values.narrow(2, start, num_new).copy_(values)
    stop = start + num_new
    return cache.keys.narrow(2, 0, stop), cache.values.narrow(2, 0, stop)
