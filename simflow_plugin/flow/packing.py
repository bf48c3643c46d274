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
from collections.abc import Callable, Iterable
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
        self.sources = {name: getattr(module, name, None) for name in ("weight", "bias")}
        for name, source in self.sources.items():
            self.__dict__[name] = None if source is None else torch.empty_like(source.detach(), dtype=dtype)


@torch.no_grad()
def refresh(casts: Iterable[Cast]) -> None:
    """Cast the present weights of the modules that `casts` were made of into their memory, all in a few launches."""
    pairs = [
        (cast.__dict__[name], source.detach())
        for cast in casts
        for name, source in cast.sources.items()
        if source is not None
    ]
    if pairs:
        targets, sources = map(list, zip(*pairs, strict=True))
        torch._foreach_copy_(targets, sources)


def casts_of(module: nn.Module) -> list[Cast]:
    """Return the casts within `module`."""
    return [child for child in module.modules() if isinstance(child, Cast)]


class CastLinear(Cast):
    """x W^T + b for inference under autocast."""

    def forward(self, hidden: Tensor) -> Tensor:
        assert self.weight is not None
        return functional.linear(hidden, self.weight, self.bias)


class CastNorm(Cast):
    """A layer norm or RMS norm for inference under autocast, in the type of products where its input has that type.

    So it is between two products, and the next one would round the output to it. A residual stream of another type
    (float32, where positions or modulation are added in it: TarFlow, adaLN) keeps the norm as it is.
    """

    def __init__(self, norm: nn.LayerNorm | RmsNorm, dtype: torch.dtype) -> None:
        super().__init__(norm, dtype)
        self.__dict__["_norm"] = norm
        self._is_layer_norm = isinstance(norm, nn.LayerNorm)
        self._dtype = dtype

    def forward(self, hidden: Tensor) -> Tensor:
        norm = self.__dict__["_norm"]
        if hidden.dtype != self._dtype:
            return norm(hidden)
        shape, eps = norm.normalized_shape, norm.eps
        with torch.autocast(hidden.device.type, enabled=False):
            if self._is_layer_norm:
                return functional.layer_norm(hidden, shape, self.weight, self.bias, eps)
            return functional.rms_norm(hidden, shape, self.weight, eps)


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
    twin = _cast_copy(module, dtype)
    refresh(casts_of(twin))
    return twin


def _cast_copy(module: M, dtype: torch.dtype) -> M:
    if isinstance(module, AdaLN):
        return module
    if isinstance(module, nn.Linear):
        return CastLinear(module, dtype)  # type: ignore[return-value]
    if isinstance(module, (nn.LayerNorm, RmsNorm)):
        return CastNorm(module, dtype)  # type: ignore[return-value]
    return _with_children(module, lambda child: _cast_copy(child, dtype))


def _with_children(module: M, replace: Callable[[nn.Module], nn.Module]) -> M:
    twin = copy.copy(module)
    twin._modules = {
        name: None if child is None else replace(child) for name, child in module._modules.items()
    }
    return twin
