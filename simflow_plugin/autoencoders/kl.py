"""The convolutional autoencoder of latent diffusion (diffusers' AutoencoderKL) with a posterior head of ours.

images -> encoder -> moments -> head -> q(z|x) -> (z - shift) * scale     = latents
latents / scale + shift -> decoder                                        = reconstruction
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from simflow_plugin.autoencoders.heads import PosteriorHead, PosteriorOptions, build_head
from simflow_plugin.autoencoders.network import DEFAULT_WIDTHS, Architecture, default_norm_groups
from simflow_plugin.autoencoders.posterior import GaussianPosterior
from simflow_plugin.contracts import Autoencoder
from simflow_plugin.errors import ConfigError, ShapeError
from simflow_plugin.options import Options
from simflow_plugin.registry import AUTOENCODERS

Numbers = float | list[float]


class KLOptions(Options):
    """Options of the `kl` autoencoder. The network's own ones may stay unset when `pretrained` is given."""

    posterior: PosteriorOptions = Field(default_factory=PosteriorOptions)
    factor: PositiveInt | None = Field(
        None, description="pixels per latent pixel, a power of two; default 8."
    )
    latent_channels: PositiveInt | None = Field(None, description="C; default 4.")
    widths: list[PositiveInt] | None = Field(
        None, description="channels by level, finest first, log2(factor) + 1 of them."
    )
    layers_per_block: PositiveInt | None = Field(None, description="residual layers by level; default 2.")
    norm_num_groups: PositiveInt | None = Field(
        None, description="groups of the group norms; default by widths."
    )
    uses_mid_attention: bool | None = Field(
        None, description="attention at the coarsest level; default true."
    )
    attention_levels: list[int] | None = Field(
        None, description="levels with attention, 0 = finest; default none."
    )
    uses_quant_conv: bool | None = Field(
        None, description="1x1 convolutions around the latent; default false."
    )
    pretrained: str | None = Field(None, description="a diffusers folder, a hub name, or a checkpoint file.")
    pretrained_format: Literal["auto", "diffusers", "ldm", "simflow"] = Field(
        "auto", description="layout of the pretrained weights; `auto` goes by the names of the tensors."
    )
    subfolder: str | None = Field(
        None, description="of `pretrained`, when it is a folder or hub name (`vae`)."
    )
    trainable: Literal["full", "decoder", "none"] = Field(
        "full", description="what the optimiser may change."
    )
    scale: Numbers | None = Field(
        None, description="latents = (raw - shift) * scale, > 0, one number or one per channel; default from "
        "`pretrained`, else 1."
    )  # fmt: skip
    shift: Numbers | None = Field(None, description="see scale; default from `pretrained`, else 0.")


@AUTOENCODERS.register("kl")
class KLAutoencoder(Autoencoder):
    """Images (B, 3, H, W) in [-1, 1] <-> latents (B, C, H / factor, W / factor).

    Args:
        options: see `KLOptions`.
        context: what the harness knows; unused, since the network is convolutional.
    Raises:
        ConfigError: if options clash.
        WeightsError: if pretrained weights are missing, torn or of another architecture.
    """

    Options = KLOptions
    latent_scale: Tensor
    latent_shift: Tensor

    def __init__(self, options: KLOptions, context: Any = None) -> None:
        super().__init__()
        architecture = architecture_from_options(options)
        self.architecture = architecture
        self.factor = architecture.factor
        self.latent_channels = architecture.latent_channels
        self.trainable = options.trainable
        self.head: PosteriorHead = build_head(options.posterior, self.latent_channels)
        self.network = architecture.build(self.head.num_moments)
        # Buffers, so that statistics which were fitted during a run travel with its checkpoints.
        self.register_buffer("latent_scale", torch.ones(self.latent_channels, 1, 1))
        self.register_buffer("latent_shift", torch.zeros(self.latent_channels, 1, 1))
        self._set_normalization(
            0.0 if options.shift is None else options.shift, 1.0 if options.scale is None else options.scale
        )
        for module in self._frozen_modules():
            module.requires_grad_(False)
        self.train()

    def encode(self, images: Tensor) -> GaussianPosterior:
        """Return the posterior in the normalised latent space.

        Args:
            images: (B, 3, H, W), [-1, 1]; H and W are multiples of `factor`.
        Raises:
            ShapeError: if they are not.
        """
        if (
            images.dim() != 4
            or images.shape[1] != 3
            or images.shape[2] % self.factor
            or images.shape[3] % self.factor
        ):
            raise ShapeError(
                f"images have shape {tuple(images.shape)}; expected (B, 3, H, W) with H and W multiples of the "
                f"autoencoder's factor {self.factor}. Choose an image size that {self.factor} divides"
            )
        moments = self.network.encoder(images)
        if self.network.quant_conv is not None:
            moments = self.network.quant_conv(moments)
        return self.head(moments).normalized(self.latent_shift, self.latent_scale)

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B, 3, H, W), not clamped.

        Args:
            latents: (B, C, h, w), in the normalised latent space.
        Raises:
            ShapeError: if there are not C channels.
        """
        if latents.dim() != 4 or latents.shape[1] != self.latent_channels:
            raise ShapeError(
                f"latents have shape {tuple(latents.shape)}; expected (B, {self.latent_channels}, h, w)"
            )
        return self.network.decode(latents / self.latent_scale + self.latent_shift).sample

    def last_layer(self) -> nn.Parameter:
        """Return the weight of the decoder's last convolution."""
        return self.network.decoder.conv_out.weight

    def fit_normalization(self, mean: Tensor, std: Tensor) -> None:
        """Make latents zero-mean and unit-variance, from statistics of latents as `encode` returns them now.

        The decoder's answer to a given raw latent does not change, nor does the posterior but for the change of
        variables: shift' = shift + mean / scale, scale' = scale / std.

        Args:
            mean: (C,), of the current latents.
            std: (C,), of the current latents, > 0.
        Raises:
            ShapeError: if they are not C finite numbers, or std is not positive.
        """
        mean, std = mean.to(self.latent_shift).reshape(-1, 1, 1), std.to(self.latent_scale).reshape(-1, 1, 1)
        if not mean.shape == std.shape == self.latent_shift.shape:
            raise ShapeError(
                f"mean and std have {mean.numel()} and {std.numel()} numbers; expected one per latent channel, "
                f"{self.latent_channels}"
            )
        if not bool((mean.isfinite() & std.isfinite() & (std > 0)).all()):
            raise ShapeError(
                f"latent statistics must be finite with std > 0, found mean {mean.flatten().tolist()} and std "
                f"{std.flatten().tolist()}; a channel with std 0 is dead"
            )
        self.latent_shift += mean / self.latent_scale
        self.latent_scale /= std

    def train(self, mode: bool = True) -> KLAutoencoder:
        """Set the mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def _frozen_modules(self) -> list[nn.Module]:
        if self.trainable == "none":
            return [self]
        if self.trainable == "decoder":
            parts = (self.head, self.network.encoder, self.network.quant_conv)
            return [part for part in parts if part is not None]
        return []

    def _set_normalization(self, shift: Numbers, scale: Numbers) -> None:
        for key, buffer, numbers in (
            ("shift", self.latent_shift, shift),
            ("scale", self.latent_scale, scale),
        ):
            values = torch.as_tensor(numbers, dtype=torch.float32).reshape(-1)
            if values.numel() not in (1, self.latent_channels) or not bool(values.isfinite().all()):
                raise ConfigError(
                    f"{key}: {numbers}; expected one finite number, or one per latent channel ({self.latent_channels})"
                )
            if key == "scale" and not bool((values > 0).all()):
                raise ConfigError(f"scale: {numbers}; expected positive numbers")
            buffer.copy_(values.expand(self.latent_channels)[:, None, None])


def architecture_from_options(options: KLOptions) -> Architecture:
    """Return the architecture of a network from scratch.

    Raises:
        ConfigError: if factor is not a power of two, or does not fit widths.
    """
    factor = options.factor
    if factor is None:
        factor = 8 if options.widths is None else 2 ** (len(options.widths) - 1)
    if factor & (factor - 1):
        raise ConfigError(f"factor: {factor} is not a power of two; choose one of 2, 4, 8, 16")
    if options.widths is None and factor not in DEFAULT_WIDTHS:
        raise ConfigError(
            f"factor: there are no default widths for {factor}; give `widths`, finest level first"
        )
    widths = tuple(options.widths or DEFAULT_WIDTHS[factor])
    if 2 ** (len(widths) - 1) != factor:
        raise ConfigError(
            f"widths: {len(widths)} levels {list(widths)} make factor {2 ** (len(widths) - 1)}, but factor is {factor};"
            f" give {factor.bit_length()} widths, or leave one of the two out"
        )
    return Architecture(
        widths=widths,
        latent_channels=options.latent_channels or 4,
        layers_per_block=options.layers_per_block or 2,
        norm_num_groups=options.norm_num_groups or default_norm_groups(widths),
        uses_mid_attention=options.uses_mid_attention is not False,
        attention_levels=tuple(options.attention_levels or ()),
        uses_quant_conv=bool(options.uses_quant_conv),
    )
