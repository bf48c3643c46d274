"""One transformer layer: causal attention and MLP, the same code for training, cached and Jacobi sampling."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from simflow_plugin.flow.adaln import NORM_EPS, AdaLN, LayerModulation
from simflow_plugin.flow.architecture import FlowConfig
from simflow_plugin.flow.attention import AttentionBackend
from simflow_plugin.flow.kv_cache import LayerCache, StaticCache, attend_static, write
from simflow_plugin.flow.matrix_product import Linear
from simflow_plugin.flow.rope import rotate

RMS_EPS = 1e-6


class RmsNorm(nn.RMSNorm):
    """RMSNorm with the weight in the input's type: mixed types (under autocast) would leave the fused kernel."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=RMS_EPS)

    def forward(self, hidden: Tensor) -> Tensor:
        return functional.rms_norm(hidden, self.normalized_shape, self.weight.to(hidden.dtype), self.eps)


def make_norm(kind: str, width: int) -> nn.Module:
    """Return the norm of that kind: `layer`, `rms`, or `plain`, a layer norm without affine parameters."""
    if kind == "plain":
        return nn.LayerNorm(width, eps=NORM_EPS, elementwise_affine=False)
    return nn.LayerNorm(width) if kind == "layer" else RmsNorm(width)


class CausalAttention(nn.Module):
    """Multi-head causal attention with optional rotation, QK norm, grouped keys and an output gate.

    One product makes queries, keys, values and gate, in that order.
    """

    def __init__(self, config: FlowConfig, backend: AttentionBackend) -> None:
        super().__init__()
        self.backend = backend
        self.head_dim = config.head_dim
        self.query_heads, self.key_heads = config.query_heads, config.key_heads
        self.is_gated = config.gated_attention
        inner = self.query_heads * self.head_dim
        num_heads = self.query_heads * (2 if self.is_gated else 1) + 2 * self.key_heads
        self.qkv = Linear(config.width, num_heads * self.head_dim, bias=config.bias)
        self.proj = Linear(inner, config.width, bias=config.bias)
        self.query_scale = nn.Parameter(torch.ones(self.head_dim)) if config.qk_norm else None
        self.key_scale = nn.Parameter(torch.ones(self.head_dim)) if config.qk_norm else None

    def forward(
        self,
        hidden: Tensor,
        rotation: Tensor | None,
        cache: LayerCache | StaticCache | None = None,
        start: int = 0,
    ) -> Tensor:
        """Attend over the n tokens in `hidden` (B, n, width), or over the cache up to and with them."""
        queries, keys, values, gate = self._heads(hidden, rotation)
        if isinstance(cache, StaticCache):
            attended = attend_static(queries, keys, values, cache)
        else:
            if cache is not None:
                keys, values = write(cache, keys, values, start)
            attended = self.backend(queries, keys, values)
        attended = attended.transpose(1, 2).flatten(2)  # (B, n, H d)
        if gate is not None:
            attended = attended * torch.sigmoid(gate)
        return self.proj(attended)

    def _heads(self, hidden: Tensor, rotation: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return queries, keys and values (B, heads, n, d), and the gate (B, n, H d) or None."""
        num_turned = self.query_heads + self.key_heads
        heads = self.qkv(hidden).unflatten(-1, (-1, self.head_dim))  # (B, n, heads, d)
        turned = heads[:, :, :num_turned]
        values = heads[:, :, num_turned : num_turned + self.key_heads]
        gate = heads[:, :, num_turned + self.key_heads :].flatten(2) if self.is_gated else None
        if self.query_scale is not None and self.key_scale is not None:
            scales = torch.cat(
                [self.query_scale.expand(self.query_heads, -1), self.key_scale.expand(self.key_heads, -1)]
            )
            turned = (functional.rms_norm(turned, (self.head_dim,), eps=RMS_EPS) * scales).to(heads.dtype)
        if rotation is not None:
            turned = rotate(turned, rotation)
        queries, keys = turned.split([self.query_heads, self.key_heads], dim=2)
        return queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), gate


class GatedActivation(nn.Module):
    """Half of the channels (B, n, 2 C) gates the other: activation(gate) value, the gate's half first."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, hidden: Tensor) -> Tensor:
        gate, value = hidden.chunk(2, dim=-1)
        if self.kind == "swiglu":
            return functional.silu(gate) * value
        return functional.gelu(gate, approximate="tanh") * value


class Mlp(nn.Module):
    """Two linear maps around an activation."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        inner = int(config.width * config.mlp_ratio)
        is_gated = config.mlp != "gelu"
        self.up = Linear(config.width, 2 * inner if is_gated else inner, bias=config.bias)
        self.activation = GatedActivation(config.mlp) if is_gated else nn.GELU()
        self.down = Linear(inner, config.width, bias=config.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down(self.activation(self.up(hidden)))


class Layer(nn.Module):
    """hidden + attention(norm(hidden)), then hidden + mlp(norm(hidden)); both modulated with adaLN."""

    def __init__(self, config: FlowConfig, backend: AttentionBackend, is_modulated: bool = False) -> None:
        super().__init__()
        kind = "plain" if is_modulated else config.norm
        self.adaln = AdaLN(config.width, config.adaln_gates) if is_modulated else None
        self.attention_norm = make_norm(kind, config.width)
        self.attention = CausalAttention(config, backend)
        self.mlp_norm = make_norm(kind, config.width)
        self.mlp = Mlp(config)
        post = (lambda: RmsNorm(config.width)) if config.post_norm else nn.Identity
        self.attention_post_norm = post()
        self.mlp_post_norm = post()

    def forward(
        self,
        hidden: Tensor,
        rotation: Tensor | None,
        modulation: LayerModulation | None = None,
        cache: LayerCache | StaticCache | None = None,
        start: int = 0,
    ) -> Tensor:
        """Return the hidden tokens (B, n, width) after this layer.

        Args:
            hidden: (B, n, width), positions start : start + n of the sequence.
            rotation: of these n positions, or None.
            modulation: of a layer with adaLN; None for any other.
            cache: keys and values of earlier positions; these n are written to it.
            start: position of the first token; 0 without a cache.
        """
        if modulation is None:
            attended = self.attention(self.attention_norm(hidden), rotation, cache, start)
            hidden = hidden + self.attention_post_norm(attended)
            return hidden + self.mlp_post_norm(self.mlp(self.mlp_norm(hidden)))
        normed = modulation.attention.apply(self.attention_norm(hidden))
        attended = self.attention_post_norm(self.attention(normed, rotation, cache, start))
        hidden = hidden + modulation.attention.weigh(attended)
        normed = modulation.mlp.apply(self.mlp_norm(hidden))
        return hidden + modulation.mlp.weigh(self.mlp_post_norm(self.mlp(normed)))
