"""The convolutional autoencoder of latent diffusion (diffusers' AutoencoderKL) with a posterior head of ours.

images -> encoder -> moments -> head -> q(z|x) -> (z - shift) * scale     = latents
latents / scale + shift -> decoder                                        = reconstruction
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from simflow_plugin.autoencoders.kl_options import KLOptions, Numbers, resolve_architecture
from simflow_plugin.autoencoders.network import select_moments
from simflow_plugin.autoencoders.network_weights import AutoencoderWeights
from simflow_plugin.contracts import Autoencoder
from simflow_plugin.convolution_layout import convolution_layout
from simflow_plugin.errors import ConfigError, ShapeError, WeightsError
from simflow_plugin.posteriors.gaussian import GaussianPosterior
from simflow_plugin.posteriors.heads import PosteriorHead, build_head
from simflow_plugin.registry import AUTOENCODERS
from simflow_plugin.weights import load_strictly


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
        self.options = options
        self.architecture, weights = resolve_architecture(options)
        self.factor = self.architecture.factor
        self.latent_channels = self.architecture.latent_channels
        self.trainable = options.trainable
        self.head: PosteriorHead = build_head(options.posterior, self.latent_channels)
        self.network = self.architecture.build(self.head.num_moments)
        # Buffers, so that statistics which were fitted during a run travel with its checkpoints.
        self.register_buffer("latent_scale", torch.ones(self.latent_channels, 1, 1))
        self.register_buffer("latent_shift", torch.zeros(self.latent_channels, 1, 1))
        if weights is not None:
            self._load(weights)
        self._set_normalization("shift", self.latent_shift, options.shift)
        self._set_normalization("scale", self.latent_scale, options.scale)
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
        return self.posterior(self.moments(images))

    def moments(self, images: Tensor) -> Tensor:
        """Return the encoder network's output (B, C or 2 C, h, w), before head and normalisation; see `encode`."""
        if (
            images.dim() != 4
            or images.shape[1] != 3
            or images.shape[2] % self.factor
            or images.shape[3] % self.factor
        ):
            raise ShapeError(
                f"images have shape {tuple(images.shape)}; expected (B, 3, H, W) with H and W multiples "
                f"of the autoencoder's factor {self.factor}. Choose an image size that {self.factor} divides"
            )
        moments = self.network.encoder(convolution_layout(images))
        if self.network.quant_conv is not None:
            moments = self.network.quant_conv(moments)
        return moments

    def posterior(self, moments: Tensor) -> GaussianPosterior:
        """Return the posterior in the normalised latent space from the network's output."""
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
        raw = latents / self.latent_scale + self.latent_shift
        return self.network.decode(convolution_layout(raw)).sample

    def last_layer(self) -> nn.Parameter:
        """Return the weight of the decoder's last convolution."""
        return self.network.decoder.conv_out.weight

    @classmethod
    def geometry(cls, options: KLOptions) -> tuple[int, int] | None:
        """Return (factor, latent_channels), or None where only the pretrained weights tell."""
        if options.pretrained is not None:  # what is stated is compared with the weights when they are read
            stated = options.factor, options.latent_channels
            return None if stated[0] is None or stated[1] is None else (stated[0], stated[1])
        architecture, _ = resolve_architecture(options)
        return architecture.factor, architecture.latent_channels

    def self_contained_options(self) -> dict[str, Any]:
        """Return options that build this network without pretrained weights; its state has the statistics."""
        network = {**asdict(self.architecture), "factor": self.factor}
        origin = dict.fromkeys(("pretrained", "subfolder", "scale", "shift"))
        options = {**self.options.model_dump(), **network, **origin, "pretrained_format": "auto"}
        return KLOptions.model_validate(options).model_dump(mode="json")

    def fit_normalization(self, mean: Tensor, std: Tensor) -> None:
        """Make latents zero-mean and unit-variance, from statistics of latents as `encode` returns them now.

        A change of variables: decode(encode(images).mode()) stays as it is.
        shift' = shift + mean / scale, scale' = scale / std.

        Args:
            mean: (C,), of the current latents.
            std: (C,), of the current latents, > 0.
        Raises:
            ShapeError: if they are not C finite numbers, or std is not positive.
        """
        mean, std = mean.to(self.latent_shift).reshape(-1, 1, 1), std.to(self.latent_scale).reshape(-1, 1, 1)
        if not mean.shape == std.shape == self.latent_shift.shape:
            raise ShapeError(
                f"mean and std have {mean.numel()} and {std.numel()} numbers; expected one per latent "
                f"channel, {self.latent_channels}"
            )
        if not bool((mean.isfinite() & std.isfinite() & (std > 0)).all()):
            raise ShapeError(
                f"latent statistics must be finite with std > 0, found mean {mean.flatten().tolist()} and "
                f"std {std.flatten().tolist()}; a channel with std 0 is dead"
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
            return [self.network]
        if self.trainable == "decoder":
            parts = (self.network.encoder, self.network.quant_conv)
            return [part for part in parts if part is not None]
        return []

    def _load(self, weights: AutoencoderWeights) -> None:
        """Copy weights, and the normalisation that came with them."""
        load_strictly(self.network, select_moments(weights.state, self.head.num_moments), weights.source)
        for name, buffer, values in (
            ("shift", self.latent_shift, weights.shift),
            ("scale", self.latent_scale, weights.scale),
        ):
            if values is None:
                continue
            if values.numel() not in (1, self.latent_channels):
                raise WeightsError(
                    f"{weights.source}: {name} has {values.numel()} numbers for {self.latent_channels} "
                    "latent channels"
                )
            buffer.copy_(values.reshape(-1, 1, 1))

    def _set_normalization(self, key: str, buffer: Tensor, numbers: Numbers | None) -> None:
        if numbers is None:
            return
        values = torch.as_tensor(numbers, dtype=torch.float32).reshape(-1, 1, 1)
        is_valid = values.isfinite().all() and (key == "shift" or (values > 0).all())
        if values.numel() not in (1, self.latent_channels) or not bool(is_valid):
            raise ConfigError(
                f"{key}: {numbers}; expected one finite {'positive ' if key == 'scale' else ''}number, or "
                f"one per latent channel ({self.latent_channels})"
            )
        buffer.copy_(values)
