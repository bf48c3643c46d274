"""Tensors without data as CUDA would keep them: the casts of autocast, which does not act on the meta device.

Products run in the lower type, norms and what overflows in it in float32, all else in the type of what it is given
(https://pytorch.org/docs/stable/amp.html#cuda-op-specific-behavior). What a cast makes is kept for the backward pass
like any other tensor. Attention keeps what a fused kernel does: queries, keys, values, output, a number for each query;
on the meta device it would take the plain path, which keeps the matrix of all pairs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

LOWER = {
    *(functional.linear, functional.scaled_dot_product_attention, functional.bilinear),
    *(torch.conv1d, torch.conv2d, torch.conv3d, torch.conv_transpose2d),
    *(torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.einsum),
    *(Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.__matmul__, Tensor.__rmatmul__),
}
FULL = {
    *(functional.group_norm, functional.layer_norm, functional.softmax, functional.log_softmax),
    *(functional.softplus, functional.mse_loss, functional.l1_loss, functional.cosine_similarity),
    *(
        torch.group_norm,
        torch.layer_norm,
        torch.softmax,
        torch.exp,
        torch.log,
        torch.pow,
        torch.sum,
        torch.rsqrt,
    ),
    *(Tensor.softmax, Tensor.exp, Tensor.log, Tensor.pow, Tensor.sum, Tensor.rsqrt, Tensor.prod, Tensor.norm),
}


class MixedPrecision(TorchFunctionMode):
    """Within the block products are of `lower`; a leaf is cast once, as autocast's cache does it."""

    def __init__(self, lower: torch.dtype) -> None:
        super().__init__()
        self.lower = lower
        self._cast_leaves: dict[Tensor, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # Keeps nothing; going back here would recompute checkpoints without the casts.
        if func is torch.autograd.grad:
            inputs = args[1] if isinstance(args[1], (list, tuple)) else args[1:2]
            return tuple(torch.zeros_like(tensor) for tensor in inputs)
        if func in LOWER or func in FULL:
            dtype = self.lower if func in LOWER else torch.float32
            args, kwargs = tree_map(lambda value: self._cast(value, dtype), (args, kwargs))
        return func(*args, **kwargs)

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if (
            not isinstance(value, Tensor)
            or value.dtype not in (torch.float32, self.lower)
            or value.dtype == dtype
        ):
            return value
        if not value.is_leaf or not value.requires_grad:
            return value.to(dtype)
        if value not in self._cast_leaves:
            self._cast_leaves[value] = value.to(dtype)
        return self._cast_leaves[value]


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
