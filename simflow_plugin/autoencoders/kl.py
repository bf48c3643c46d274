"""The convolutional autoencoder of latent diffusion (diffusers' AutoencoderKL) with a posterior head of ours.

images -> encoder -> moments -> head -> q(z|x) -> (z - shift) * scale     = latents
latents / scale + shift -> decoder                                        = reconstruction
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simflow_plugin.autoencoders.architecture import default_norm_groups, moments_prefix, select_moments
from simflow_plugin.autoencoders.diffusers_config import normalization_config
from simflow_plugin.autoencoders.kl_options import KLFacts, KLOptions, Numbers, resolve_architecture
from simflow_plugin.autoencoders.network_weights import AutoencoderWeights
from simflow_plugin.contracts import Autoencoder, Posterior, PosteriorContext, PosteriorHead
from simflow_plugin.convolution_layout import convolution_layout
from simflow_plugin.errors import ConfigError, ShapeError, SimflowError, WeightsError
from simflow_plugin.registry import AUTOENCODERS, POSTERIORS
from simflow_plugin.weights import load_strictly

log = logging.getLogger(__name__)


@AUTOENCODERS.register("kl")
class KLAutoencoder(KLFacts, Autoencoder):
    """Images (B, 3, H, W) in [-1, 1] <-> latents (B, C, H / factor, W / factor).

    Args:
        options: see `KLOptions`.
        context: what the harness knows; unused, since the network is convolutional.
    Raises:
        ConfigError: if options clash.
        WeightsError: if pretrained weights are missing, torn or of another architecture.
    """

    latent_scale: Tensor
    latent_shift: Tensor

    def __init__(self, options: KLOptions, context: Any = None) -> None:
        super().__init__()
        self.options = options
        self.architecture, weights = resolve_architecture(options)
        self.factor = self.architecture.factor
        self.latent_channels = self.architecture.latent_channels
        self.trainable = options.trainable
        self.head: PosteriorHead = options.posterior.build(POSTERIORS, PosteriorContext(self.latent_channels))
        self.network = self.architecture.build(self.head.num_moments)
        # Buffers, so that statistics which were fitted during a run travel with its checkpoints.
        self.register_buffer("latent_scale", torch.ones(self.latent_channels, 1, 1))
        self.register_buffer("latent_shift", torch.zeros(self.latent_channels, 1, 1))
        if weights is not None:
            self._load(weights)
        for name in ("shift", "scale"):
            self._set_normalization(name, getattr(options, name), ConfigError)
        for module in self._frozen_modules():
            module.requires_grad_(False)
        self.train()

    def encode(self, images: Tensor) -> Posterior:
        """Return the posterior in the normalised latent space.

        Args:
            images: (B, 3, H, W), [-1, 1]; H and W are multiples of `factor`.
        Raises:
            ShapeError: if they are not.
        """
        return self.posterior(self.moments(images))

    def moments(self, images: Tensor) -> Tensor:
        """Return the encoder network's output (B, M, h, w), before head and normalisation; see `encode`."""
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

    def posterior(self, moments: Tensor) -> Posterior:
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

    @torch.no_grad()
    def to_diffusers(self) -> Any:
        """Return a diffusers AutoencoderKL on the CPU that encodes and decodes alike.

        The head's map from the encoder's outputs to diffusers' C means and C log-variances is folded into the last
        convolution of the encoder. For a fixed variance its part is weights 0 and bias 2 log sigma.

        Raises:
            WeightsError: if the posterior has no moments that diffusers knows; see `PosteriorHead.as_moments`.
        """
        state = {name: tensor.detach().cpu() for name, tensor in self.network.state_dict().items()}
        moments, prefix = self.head.as_moments(), moments_prefix(state)
        last, offset = state[f"{prefix}.weight"], state[f"{prefix}.bias"]
        weight = moments.weight.to(last)
        state[f"{prefix}.weight"] = torch.einsum("om,mikl->oikl", weight, last)
        state[f"{prefix}.bias"] = weight @ offset + moments.bias.to(offset)
        network = self.architecture.build(2 * self.latent_channels)
        network.load_state_dict(state)
        shift, scale = self.latent_shift.flatten().tolist(), self.latent_scale.flatten().tolist()
        network.register_to_config(**normalization_config(shift, scale))
        return network.eval()

    def options_to_load(self, exported: Path) -> dict[str, Any]:
        """Return the part that reads back an export of this autoencoder, frozen."""
        options: dict[str, Any] = {"name": "kl", "pretrained": str(exported), "trainable": "none"}
        groups = self.architecture.norm_num_groups
        if exported.suffix == ".safetensors" and groups != default_norm_groups(self.architecture.widths):
            options["norm_num_groups"] = groups  # leaves no trace in the weights
        posterior = {"name": self.options.posterior.name, **self.head.options.model_dump(mode="json")}
        return {**options, "posterior": posterior}

    def self_contained_options(self) -> dict[str, Any]:
        """Return options that build this network without pretrained weights; its state has the statistics."""
        origin = dict.fromkeys(("pretrained", "subfolder", "scale", "shift"))
        network = {**self.architecture.as_options(), **origin, "pretrained_format": "auto"}
        options = {**self.options.model_dump(), **network}
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
            return [self.network, self.head]
        if self.trainable == "decoder":
            parts = (self.network.encoder, self.network.quant_conv, self.head)
            return [part for part in parts if part is not None]
        return []

    def _load(self, weights: AutoencoderWeights) -> None:
        """Copy weights, and the normalisation that came with them."""
        try:
            state = select_moments(weights.state, self.head)
        except WeightsError as error:
            raise WeightsError(f"{weights.source}: {error}") from error
        load_strictly(self.network, state, weights.source)
        if weights.head and self.head.state_dict():  # a head with parameters of its own, exported before
            load_strictly(self.head, weights.head, f"{weights.source}: posterior")
        for name in ("shift", "scale"):
            self._set_normalization(name, getattr(weights, name), WeightsError, f"{weights.source}: ")
        if weights.scale is None and self.options.scale is None:
            log.warning(
                "%s: the scale of its latents is not known (no config.json or NAME-latents-stats.pt beside it, no "
                "scale_factor in it); they are used as the encoder returns them. Set autoencoder.scale: 0.18215 for "
                "the SD-VAE and its fine-tuned versions, 1.0 if that is meant.",
                weights.source,
            )

    def _set_normalization(
        self, name: str, numbers: Tensor | Numbers | None, error: type[SimflowError], where: str = ""
    ) -> None:
        if numbers is None:
            return
        values = torch.as_tensor(numbers, dtype=torch.float32).reshape(-1, 1, 1)
        is_usable = bool(values.isfinite().all()) and (name == "shift" or bool((values > 0).all()))
        if values.numel() not in (1, self.latent_channels) or not is_usable:
            shown = numbers.flatten().tolist() if isinstance(numbers, Tensor) else numbers
            remedy = f" Set the option `{name}`." if isinstance(numbers, Tensor) else ""
            raise error(
                f"{where}{name} of the latents is {shown}; expected one finite number of float32, or one per latent "
                f"channel ({self.latent_channels}){', above 0' if name == 'scale' else ''}.{remedy}"
            )
        getattr(self, f"latent_{name}").copy_(values)
