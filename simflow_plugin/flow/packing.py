"""Linear maps prepared for sampling: a copy of a block with weights packed for the CPU, or cast once under autocast.

A decode step multiplies a few rows by every weight of a block. The default float32 product lays the weight out
anew each time; oneDNN takes a weight that was laid out once, and is also the faster library on many processors.
Packing costs about one pass over the weights, so it pays from a few steps on.

Under autocast every product casts its weight again, since inference mode turns autocast's cache off: 8 bytes a
parameter and step (4 read, 2 written, 2 read) where 2 would do. And every norm between two products casts its input up
and its output down, though the kernels of the lower type reckon in float32 inside: two launches where none are needed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from simflow_plugin.flow.adaln import AdaLN
from simflow_plugin.flow.layers import Mlp, RmsNorm
from simflow_plugin.flow.matrix_product import onednn_linear, uses_onednn

M = TypeVar("M", bound=nn.Module)


class PackedLinear(nn.Module):
    """x W^T + b for inference in float32 on the CPU; no gradient, and the weight is not a parameter.

    Args:
        linear: the map to pack; it is not changed.
        rows: the usual number of rows of x, for which the layout is chosen; any number works.
        activation: oneDNN's name of what is applied to the result, `none` or `gelu`.
    """

    weight: Tensor
    bias: Tensor | None
    packed: Tensor

    def __init__(self, linear: nn.Linear, rows: int, activation: str = "none") -> None:
        super().__init__()
        self.activation = activation
        # Plain attributes through __dict__: nothing here belongs in a state dict, and look-ups stay cheap.
        self.__dict__["weight"] = linear.weight.detach()
        self.__dict__["bias"] = None if linear.bias is None else linear.bias.detach()
        self.__dict__["packed"] = torch.ops.mkldnn._reorder_linear_weight(self.weight, rows)

    def forward(self, hidden: Tensor) -> Tensor:
        return onednn_linear(hidden, self.packed, self.bias, self.activation)


class Cast(nn.Module):
    """Weights of a module in the type that products have under autocast; nothing here is a parameter.

    Args:
        module: with `weight` and `bias`, each perhaps None; it is not changed.
        dtype: of products under autocast.
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self._sources = {name: getattr(module, name, None) for name in ("weight", "bias")}
        for name, source in self._sources.items():
            self.__dict__[name] = None if source is None else source.detach().to(dtype)

    def refresh(self) -> None:
        """Cast the module's present weights into the same memory."""
        for name, source in self._sources.items():
            if source is not None:
                self.__dict__[name].copy_(source.detach())


class CastLinear(Cast):
    """x W^T + b for inference under autocast."""

    def forward(self, hidden: Tensor) -> Tensor:
        return functional.linear(hidden, self.weight, self.bias)


class CastNorm(Cast):
    """A layer norm or RMS norm for inference under autocast, whose input and output are in the type of products.

    The input has that type already, between two products, and the next product would round the output to it.
    """

    def __init__(self, norm: nn.LayerNorm | RmsNorm, dtype: torch.dtype) -> None:
        super().__init__(norm, dtype)
        self._norm = functional.layer_norm if isinstance(norm, nn.LayerNorm) else functional.rms_norm
        self._shape, self._eps, self._dtype = tuple(norm.normalized_shape), norm.eps, dtype

    def forward(self, hidden: Tensor) -> Tensor:
        weights = (self.weight, self.bias) if self._norm is functional.layer_norm else (self.weight,)
        with torch.autocast(hidden.device.type, enabled=False):
            return self._norm(hidden.to(self._dtype), self._shape, *weights, eps=self._eps)  # type: ignore[operator]


def can_pack(like: Tensor) -> bool:
    """Return whether weights like this one can be packed."""
    return uses_onednn(like) and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


def _is_exact_gelu(module: nn.Module) -> bool:
    return isinstance(module, nn.GELU) and module.approximate == "none"


def packed_copy(module: M, rows: int) -> M:
    """Return a copy of `module` that shares its parameters, with its linear maps packed for `rows` rows.

    The maps of adaLN run once a block, before any step: they stay as they are.
    """
    if isinstance(module, AdaLN):
        return module
    if isinstance(module, nn.Linear):
        return PackedLinear(module, rows)  # type: ignore[return-value]
    if isinstance(module, Mlp) and _is_exact_gelu(module.activation):
        return nn.Sequential(  # type: ignore[return-value]
            PackedLinear(module.up, rows, activation="gelu"), PackedLinear(module.down, rows)
        )
    return _with_children(module, lambda child: packed_copy(child, rows))


def cast_copy(module: M, dtype: torch.dtype) -> M:
    """Return a copy of `module` that shares its parameters, with the weights of linear maps and norms in `dtype`."""
    if isinstance(module, AdaLN):
        return module
    if isinstance(module, nn.Linear):
        return CastLinear(module, dtype)  # type: ignore[return-value]
    if isinstance(module, (nn.LayerNorm, RmsNorm)):
        return CastNorm(module, dtype)  # type: ignore[return-value]
    return _with_children(module, lambda child: cast_copy(child, dtype))


def _with_children(module: M, replace: Callable[[nn.Module], nn.Module]) -> M:
    twin = copy.copy(module)
    twin._modules = {
        name: None if child is None else replace(child) for name, child in module._modules.items()
    }
    return twin
