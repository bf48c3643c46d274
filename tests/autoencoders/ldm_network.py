"""A slow oracle: the latent-diffusion autoencoder as functions of a dictionary of tensors in its own layout.

Written from the description of that layout, and knowing nothing of diffusers: random weights by name, and
what each name does to an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Sizes:
    """Widths by level (finest first), latent channels C, residual layers by level, levels with attention."""

    widths: tuple[int, ...]
    latent_channels: int
    num_layers: int
    attention_levels: tuple[int, ...] = ()


def random_weights(sizes: Sizes, seed: int = 0) -> dict[str, Tensor]:
    """Return float32 weights for both sides, all of them random, so that no term is silent."""
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}

    def conv(name: str, n_in: int, n_out: int, kernel: int) -> None:
        scale = (n_in * kernel**2) ** -0.5
        weights[f"{name}.weight"] = torch.randn(n_out, n_in, kernel, kernel, generator=generator) * scale
        weights[f"{name}.bias"] = torch.randn(n_out, generator=generator) * 0.1

    def norm(name: str, width: int) -> None:
        weights[f"{name}.weight"] = 1 + 0.2 * torch.randn(width, generator=generator)
        weights[f"{name}.bias"] = 0.2 * torch.randn(width, generator=generator)

    def residual(name: str, n_in: int, n_out: int) -> None:
        norm(f"{name}.norm1", n_in)
        conv(f"{name}.conv1", n_in, n_out, 3)
        norm(f"{name}.norm2", n_out)
        conv(f"{name}.conv2", n_out, n_out, 3)
        if n_in != n_out:
            conv(f"{name}.nin_shortcut", n_in, n_out, 1)

    def attention(name: str, width: int) -> None:
        norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{part}", width, width, 1)

    def levels(side: str, order: list[int], num_layers: int, width: int, sampler: str) -> int:
        for level in order:
            prefix = f"{side}.{'down' if side == 'encoder' else 'up'}.{level}"
            for layer in range(num_layers):
                residual(f"{prefix}.block.{layer}", width, sizes.widths[level])
                width = sizes.widths[level]
                if level in sizes.attention_levels:
                    attention(f"{prefix}.attn.{layer}", width)
            if level != order[-1]:
                conv(f"{prefix}.{sampler}.conv", width, width, 3)
        return width

    def middle(side: str, width: int) -> None:
        residual(f"{side}.mid.block_1", width, width)
        attention(f"{side}.mid.attn_1", width)
        residual(f"{side}.mid.block_2", width, width)

    order, channels = list(range(len(sizes.widths))), sizes.latent_channels
    conv("encoder.conv_in", 3, sizes.widths[0], 3)
    coarsest = levels("encoder", order, sizes.num_layers, sizes.widths[0], "downsample")
    middle("encoder", coarsest)
    norm("encoder.norm_out", coarsest)
    conv("encoder.conv_out", coarsest, 2 * channels, 3)
    conv("quant_conv", 2 * channels, 2 * channels, 1)
    conv("post_quant_conv", channels, channels, 1)
    conv("decoder.conv_in", channels, coarsest, 3)
    middle("decoder", coarsest)
    finest = levels("decoder", order[::-1], sizes.num_layers + 1, coarsest, "upsample")
    norm("decoder.norm_out", finest)
    conv("decoder.conv_out", finest, 3, 3)
    return weights


@dataclass(frozen=True)
class Oracle:
    """Evaluates `weights`, with `num_groups` groups in every norm."""

    weights: dict[str, Tensor]
    sizes: Sizes
    num_groups: int

    def moments(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> mean and log-variance (B, 2C, h, w)."""
        hidden = self._conv("encoder.conv_in", images)
        for level in range(len(self.sizes.widths)):
            hidden = self._level(f"encoder.down.{level}", hidden, self.sizes.num_layers)
            if f"encoder.down.{level}.downsample.conv.weight" in self.weights:
                # Padded on the right and below only.
                padded = F.pad(hidden, (0, 1, 0, 1))
                hidden = self._conv(f"encoder.down.{level}.downsample.conv", padded, stride=2, padding=0)
        return self._conv("quant_conv", self._end("encoder", self._middle("encoder", hidden)))

    def images(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> images (B, 3, H, W)."""
        hidden = self._conv("decoder.conv_in", self._conv("post_quant_conv", latents))
        hidden = self._middle("decoder", hidden)
        for level in reversed(range(len(self.sizes.widths))):
            hidden = self._level(f"decoder.up.{level}", hidden, self.sizes.num_layers + 1)
            if f"decoder.up.{level}.upsample.conv.weight" in self.weights:
                doubled = hidden.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
                hidden = self._conv(f"decoder.up.{level}.upsample.conv", doubled)
        return self._end("decoder", hidden)

    def _conv(self, name: str, hidden: Tensor, stride: int = 1, padding: int | None = None) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.conv2d(hidden, weight, bias, stride, weight.shape[-1] // 2 if padding is None else padding)

    def _norm(self, name: str, hidden: Tensor) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.group_norm(hidden, self.num_groups, weight, bias, eps=1e-6)

    def _level(self, name: str, hidden: Tensor, num_layers: int) -> Tensor:
        for layer in range(num_layers):
            hidden = self._residual(f"{name}.block.{layer}", hidden)
            if f"{name}.attn.{layer}.q.weight" in self.weights:
                hidden = self._attention(f"{name}.attn.{layer}", hidden)
        return hidden

    def _middle(self, side: str, hidden: Tensor) -> Tensor:
        hidden = self._residual(f"{side}.mid.block_1", hidden)
        hidden = self._attention(f"{side}.mid.attn_1", hidden)
        return self._residual(f"{side}.mid.block_2", hidden)

    def _end(self, side: str, hidden: Tensor) -> Tensor:
        return self._conv(f"{side}.conv_out", F.silu(self._norm(f"{side}.norm_out", hidden)))

    def _residual(self, name: str, hidden: Tensor) -> Tensor:
        inner = self._conv(f"{name}.conv1", F.silu(self._norm(f"{name}.norm1", hidden)))
        inner = self._conv(f"{name}.conv2", F.silu(self._norm(f"{name}.norm2", inner)))
        if f"{name}.nin_shortcut.weight" in self.weights:
            hidden = self._conv(f"{name}.nin_shortcut", hidden)
        return hidden + inner

    def _attention(self, name: str, hidden: Tensor) -> Tensor:
        inner = self._norm(f"{name}.norm", hidden)
        # (B, F, h * w)
        query, key, value = (self._conv(f"{name}.{part}", inner).flatten(2) for part in "qkv")
        weights = torch.softmax(query.mT @ key * query.shape[1] ** -0.5, dim=-1)  # (B, queries, keys)
        mixed = (weights @ value.mT).mT.unflatten(2, hidden.shape[2:])
        return hidden + self._conv(f"{name}.proj_out", mixed)
