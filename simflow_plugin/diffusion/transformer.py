"""The adaLN-zero transformer of DiT and SiT: patches in, one prediction per latent element out.

Each layer is x + g1 * attention(m1(x)), then x + g2 * mlp(m2(x)), where m(x) = LN(x) (1 + scale) + shift and
(shift, scale, gate) are linear in silu(time + class). They start at zero: a new layer is the identity.
Reference: DiT, arXiv:2212.09748.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from simflow_plugin.contracts import NO_LABEL
from simflow_plugin.diffusion.embeddings import LabelEmbedding, TimeEmbedding, sincos_positions
from simflow_plugin.diffusion.options import BackboneOptions
from simflow_plugin.errors import ShapeError

NORM_EPS = 1e-6


class BackboneOutput(NamedTuple):
    """`prediction` (B, C, h, w); `hidden` (B, T, width) after the layer asked for, or None."""

    prediction: Tensor
    hidden: Tensor | None


class AdaLNTransformer(nn.Module):
    """The network of SiT and DiT.

    Args:
        options: sizes.
        latent_shape: (C, h, w).
        num_classes: None for an unconditional network.
    """

    def __init__(
        self,
        options: BackboneOptions,
        latent_shape: tuple[int, int, int],
        num_classes: int | None,
    ) -> None:
        super().__init__()
        width, depth, _ = options.dimensions
        patch = options.patch_size
        self.options = options
        self.latent_shape = latent_shape
        self.width = width
        self.grid_size = options.check_grid(latent_shape)
        self.patch_embed = nn.Conv2d(latent_shape[0], width, kernel_size=patch, stride=patch)
        self.time_embed = TimeEmbedding(width)
        self.label_embed = LabelEmbedding(num_classes, width) if num_classes is not None else None
        self.layers = nn.ModuleList([AdaLNLayer(options) for _ in range(depth)])
        self.head = PredictionHead(width, patch * patch * latent_shape[0])
        self.positions: Tensor
        self.register_buffer("positions", sincos_positions(width, self.grid_size), persistent=False)
        self._initialise()

    def forward(
        self, latents: Tensor, t: Tensor, labels: Tensor | None, hidden_layer: int | None = None
    ) -> BackboneOutput:
        """Predict.

        Args:
            latents: (B, C, h, w), noised.
            t: (B,), in the unit of the model (SiT: [0, 1]; DiT: steps).
            labels: (B,) int64 with `NO_LABEL` for none; None is `NO_LABEL` everywhere.
            hidden_layer: counted from 1; its output tokens are returned as `hidden`.
        Raises:
            ShapeError: if `latents` is not (B, *latent_shape).
        """
        tokens, condition = self._embed(latents, t, labels)
        split = hidden_layer or 0
        tokens = self._run(self.layers[:split], tokens, condition)
        hidden = tokens if hidden_layer is not None else None
        tokens = self._run(self.layers[split:], tokens, condition)
        return BackboneOutput(self._unpatchify(self.head(tokens, condition)), hidden)

    def hidden_tokens(self, latents: Tensor, t: Tensor, labels: Tensor | None, hidden_layer: int) -> Tensor:
        """Return the `hidden` of `forward`, (B, T, width), without the layers after it; arguments as there."""
        tokens, condition = self._embed(latents, t, labels)
        return self._run(self.layers[:hidden_layer], tokens, condition)

    def _embed(self, latents: Tensor, t: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return tokens (B, T, width) and silu of the condition (B, width)."""
        if latents.shape[1:] != self.latent_shape:
            raise ShapeError(
                f"latents have shape {tuple(latents.shape)}, but this model was built for (B, "
                f"{', '.join(map(str, self.latent_shape))})."
            )
        tokens = self.patch_embed(latents).flatten(2).transpose(1, 2) + self.positions
        return tokens, F.silu(self._condition(t, labels))

    def _run(self, layers: Iterable[nn.Module], tokens: Tensor, condition: Tensor) -> Tensor:
        for layer in layers:
            if self.options.uses_activation_checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(layer, tokens, condition, use_reentrant=False)
            else:
                tokens = layer(tokens, condition)
        return tokens

    def _condition(self, t: Tensor, labels: Tensor | None) -> Tensor:
        condition = self.time_embed(t)  # (B, width)
        if self.label_embed is None:
            return condition
        if labels is None:
            labels = torch.full(t.shape, NO_LABEL, dtype=torch.int64, device=t.device)
        return condition + self.label_embed(labels)

    def _unpatchify(self, tokens: Tensor) -> Tensor:
        """Lay tokens (B, T, p * p * C), inside (row, column, channel), onto the grid (B, C, h, w)."""
        (height, width), patch, channels = self.grid_size, self.options.patch_size, self.latent_shape[0]
        cells = tokens.unflatten(1, (height, width)).unflatten(3, (patch, patch, channels))
        return cells.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, height * patch, width * patch)

    def _initialise(self) -> None:
        """Xavier for linear maps, 0.02 for embeddings, zero for modulations and the output (as in DiT)."""
        nn.init.xavier_uniform_(self.patch_embed.weight.view(self.width, -1))
        if self.patch_embed.bias is not None:
            nn.init.zeros_(self.patch_embed.bias)
        for name, module in self.named_modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if not isinstance(module, nn.Linear):
                continue
            nn.init.zeros_(module.bias)
            if name.startswith("time_embed"):
                nn.init.normal_(module.weight, std=0.02)
            elif name.endswith("modulation") or name == "head.linear":
                nn.init.zeros_(module.weight)
            else:
                nn.init.xavier_uniform_(module.weight)


class AdaLNLayer(nn.Module):
    """Attention and MLP, each modulated before and gated after."""

    def __init__(self, options: BackboneOptions) -> None:
        super().__init__()
        width, _, num_heads = options.dimensions
        inner = int(width * options.mlp_ratio)
        self.attention = Attention(width, num_heads, options.uses_qk_norm)
        self.mlp = nn.Sequential(
            nn.Linear(width, inner), nn.GELU(approximate="tanh"), nn.Linear(inner, width)
        )
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Map tokens (B, T, width), given silu of the condition (B, width)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, dim=-1)
        tokens = tokens + gate1 * self.attention(modulated_norm(tokens, shift1, scale1))
        return tokens + gate2 * self.mlp(modulated_norm(tokens, shift2, scale2))


class Attention(nn.Module):
    """Multi-head self-attention without a mask."""

    def __init__(self, width: int, num_heads: int, uses_qk_norm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.LayerNorm(width // num_heads) if uses_qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width // num_heads) if uses_qk_norm else nn.Identity()
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, T, width)."""
        heads = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = heads.unbind(0)  # each (B, heads, T, width / heads)
        mixed = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.out(mixed.transpose(1, 2).flatten(2))


class PredictionHead(nn.Module):
    """Modulated norm and a linear map to the elements of a patch; starts at zero."""

    def __init__(self, width: int, out_features: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 2 * width)
        self.linear = nn.Linear(width, out_features)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Map tokens (B, T, width) to (B, T, out_features)."""
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=-1)
        return self.linear(modulated_norm(tokens, shift, scale))


def modulated_norm(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return LN(tokens) (1 + scale) + shift; the norm has no parameters of its own."""
    return F.layer_norm(tokens, tokens.shape[-1:], eps=NORM_EPS) * (1 + scale) + shift
