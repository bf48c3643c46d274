"""Tensors that attention keeps for its backward pass on a GPU: queries, keys, values, output, a number for each query.

The meta device has no fused kernel and takes the plain path, in float32, which keeps the matrix of all pairs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class FusedAttention(TorchFunctionMode):
    """Within the block scaled_dot_product_attention has the shapes and the memory of a fused kernel, and no values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            return _FusedShapes.apply(*args[:3])
        return func(*args, **(kwargs or {}))


class _FusedShapes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        # Memory as the kernels give it: the heads of a token lie together.
        batch, heads, length, _ = queries.shape
        output = queries.new_empty(batch, length, heads, values.shape[-1]).transpose(1, 2)
        log_sum = queries.new_empty(queries.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(queries, keys, values, output, log_sum)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values, _, _ = ctx.saved_tensors
        return torch.zeros_like(queries), torch.zeros_like(keys), torch.zeros_like(values)
