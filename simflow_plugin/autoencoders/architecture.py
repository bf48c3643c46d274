"""Sizes and options of a convolutional autoencoder, by default, by name, or as they are written; free of torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from simflow_plugin.errors import ConfigError

DEFAULT_WIDTHS = {
    1: (64,),
    2: (64, 128),
    4: (128, 256, 512),
    8: (128, 256, 512, 512),
    16: (128, 128, 256, 256, 512),
    32: (128, 128, 256, 256, 512, 512),
}
"""Channels by level for each factor; f8 is that of SD-VAE, f16 that of VA-VAE and the REPA-E host."""


NAMED_ARCHITECTURES: dict[str, dict[str, Any]] = {
    # SimFlow's own, `vae_f16d64`: that of the REPA-E host's f16d32 with 64 channels (the name is read, the rest of it
    # inferred). The host counts attention by resolution, 16 for images of 256: the coarsest level.
    "f16d64": {
        "factor": 16,
        "latent_channels": 64,
        "widths": [128, 128, 256, 256, 512],
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "uses_mid_attention": True,
        "attention_levels": [4],
        "uses_quant_conv": True,
    },
}
"""Options that a name fills in. Its encoder has no log-variance where the posterior's variance is fixed."""


@dataclass(frozen=True)
class Architecture:
    """Sizes and options of the network.

    Args:
        widths: channels by level, finest first; each level after the first halves the resolution.
        latent_channels: C.
        layers_per_block: residual layers of each encoder level (the decoder has one more).
        norm_num_groups: groups of the group norms; divides every width.
        uses_mid_attention: whether the coarsest level attends between its two middle layers.
        attention_levels: levels (0 = finest) with attention after every residual layer.
        uses_quant_conv: whether 1x1 convolutions follow the encoder and precede the decoder.
    Raises:
        ConfigError: if the numbers do not fit each other.
    """

    widths: tuple[int, ...]
    latent_channels: int
    layers_per_block: int = 2
    norm_num_groups: int = 32
    uses_mid_attention: bool = True
    attention_levels: tuple[int, ...] = ()
    uses_quant_conv: bool = False

    def __post_init__(self) -> None:
        unfit = [width for width in self.widths if width % self.norm_num_groups]
        if unfit:
            raise ConfigError(
                f"norm_num_groups: {self.norm_num_groups} does not divide the width {unfit[0]} of widths "
                f"{list(self.widths)}; choose another number of groups or other widths"
            )
        outside = [level for level in self.attention_levels if not 0 <= level < len(self.widths)]
        if outside:
            raise ConfigError(
                f"attention_levels: there is no level {outside[0]}; with widths {list(self.widths)} levels "
                f"are 0 to {len(self.widths) - 1}"
            )

    @property
    def factor(self) -> int:
        """Pixels per latent pixel, along one side."""
        return 2 ** (len(self.widths) - 1)

    def build(self, num_moments: int) -> Any:
        """Return a new AutoencoderKL whose encoder ends in `num_moments` channels (C or 2C)."""
        from diffusers import AutoencoderKL  # imported here: it takes seconds, and listing names needs none

        levels = range(len(self.widths))
        network = AutoencoderKL(
            block_out_channels=self.widths,
            down_block_types=[self._block_type(level, "DownEncoderBlock2D") for level in levels],
            up_block_types=[self._block_type(level, "UpDecoderBlock2D") for level in reversed(levels)],
            layers_per_block=self.layers_per_block,
            latent_channels=self.latent_channels,
            norm_num_groups=self.norm_num_groups,
            mid_block_add_attention=self.uses_mid_attention,
            use_quant_conv=self.uses_quant_conv,
            use_post_quant_conv=self.uses_quant_conv,
        )
        if num_moments != 2 * self.latent_channels:
            _narrow_moments(network, num_moments)
        return network

    def _block_type(self, level: int, name: str) -> str:
        return f"Attn{name}" if level in self.attention_levels else name


def default_norm_groups(widths: Sequence[int]) -> int:
    """Return 32 groups where each group keeps four channels or more, fewer for narrow networks.

    A group of one channel would be instance norm, which erases each channel's mean intensity.
    """
    return math.gcd(32, *(max(width // 4, 1) for width in widths), *widths)


def _narrow_moments(network: Any, num_moments: int) -> None:
    """Put a fresh convolution with `num_moments` outputs in place of the one that returns the moments."""
    from torch import nn

    if network.quant_conv is not None:
        network.quant_conv = nn.Conv2d(network.quant_conv.in_channels, num_moments, 1)
    else:
        network.encoder.conv_out = nn.Conv2d(network.encoder.conv_out.in_channels, num_moments, 3, padding=1)
