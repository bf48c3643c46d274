"""What the harness and its parts promise each other: the interfaces that a new part implements.

Data flows one way: images -> posterior -> latents -> model (training); noise -> latents -> images (sampling).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from simflow_plugin.options import Options
from simflow_plugin.randomness import Random

NO_LABEL = -1
"""The label of an image without one, and of a row whose label was dropped for guidance."""


@dataclass(frozen=True)
class AlignmentContext:
    """What a generative model needs to know to compute an alignment term.

    Args:
        feature_dim: F, channels of the frozen encoder's patch features.
        layer: counted from 1; the hidden tokens after that layer are aligned.
        projector_dim: width of the projector's two hidden layers.
    """

    feature_dim: int
    layer: int
    projector_dim: int = 2048


@dataclass(frozen=True)
class ModelContext:
    """What the harness tells a generative model when it builds it.

    Args:
        latent_shape: (C, h, w) of the latents.
        num_classes: number of classes, or None for an unlabelled data set.
        alignment: None when no alignment is configured.
    """

    latent_shape: tuple[int, int, int]
    num_classes: int | None = None
    alignment: AlignmentContext | None = None


class GenerativeModel(nn.Module, ABC):
    """A generative model of latents in the harness; the loop knows no more of it than this.

    Subclasses are built as `factory(options, context)` and declare `Options`.
    """

    Options: ClassVar[type[Options]]

    coupled_terms: ClassVar[frozenset[str]] = frozenset()
    """Names of the terms whose gradient may reach a trainable autoencoder through `latents`. The other terms see
    the latents detached; the harness does the routing, the model never detaches."""

    supports_alignment: ClassVar[bool] = False
    """Whether `training_losses`, given features, returns an `alignment` term of hidden tokens."""

    supports_guidance: bool = False
    """Whether `sample` accepts guidance > 0 (it needs label dropout in training)."""

    noise_std: float = 0.0
    """Std of the noise that the model itself adds to latents in training (STARFlow), in their normalised units."""

    @abstractmethod
    def training_losses(
        self, latents: Tensor, labels: Tensor | None, features: Tensor | None, random: Random
    ) -> dict[str, Tensor]:
        """Return scalar float32 terms by name; the loop weighs and sums them.

        Args:
            latents: (B, C, h, w), a sample of the posterior, in the autoencoder's normalised space.
            labels: (B,) int64 in [0, num_classes), `NO_LABEL` for none; or None.
            features: (B, N, F), the frozen encoder's patch features in raster order, or None without alignment.
            random: named draws (`random.normal("noise", latents.shape, latents.device)`).
        Returns:
            `nll` is in nats per latent dimension, with the Gaussian's constant; `denoising` is a mean squared
            error; `alignment` is a mean negative cosine similarity. Present only if computed.
        """

    def autoencoder_losses(
        self, latents: Tensor, labels: Tensor | None, features: Tensor | None, random: Random
    ) -> dict[str, Tensor] | None:
        """Return the coupled terms that move the autoencoder where they come from a pass of their own.

        Called before `training_losses` with the same arguments; changes no state.

        Returns:
            Coupled terms by name; None (as here) where those of `training_losses` move the autoencoder too.
        """
        return None

    @abstractmethod
    def sample(self, labels: Tensor | None, shape: Sequence[int], guidance: float, random: Random) -> Tensor:
        """Draw latents of `shape` (B, C, h, w).

        Args:
            labels: (B,) int64, or None.
            shape: of the latents to draw.
            guidance: weight w >= 0; 0 is the conditional model itself.
            random: named draws, one row a sample.
        Returns:
            (B, C, h, w), in the autoencoder's normalised space.
        """

    def remove_noise(self, noisy_latents: Tensor, labels: Tensor | None) -> Tensor:
        """Return what is decoded in place of noisy latents (B, C, h, w), as `sample` does it."""
        return noisy_latents

    def log_prob(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        """Return log p(latents given labels), (B,), float32, nats; only models with an exact density have it.

        The latents are those that the model learns: whoever evaluates adds noise of `noise_std` first.

        Raises:
            NotImplementedError: for a model without a tractable density.
        """
        raise NotImplementedError(f"{type(self).__name__} has no tractable density")


class Posterior(Protocol):
    """q(z given x), a diagonal Gaussian over latents (B, C, h, w)."""

    mean: Tensor
    std: Tensor

    @property
    def learns_variance(self) -> bool:
        """Whether the encoder predicts the variance, so that the objective adds an entropy or KL term to it."""

    def sample(self, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor: ...
    def mode(self) -> Tensor: ...
    def kl(self) -> Tensor: ...
    def entropy(self) -> Tensor: ...
    def log_prob(self, latents: Tensor) -> Tensor: ...


class Autoencoder(nn.Module, ABC):
    """Images (B, 3, H, W) in [-1, 1] <-> latents (B, C, H / factor, W / factor).

    Latents are in the normalised space: a fixed per-channel (or scalar) shift and scale of the raw latents are
    part of the autoencoder, applied in `encode` and undone in `decode`.
    """

    Options: ClassVar[type[Options]]
    factor: int
    latent_channels: int
    trainable: str
    """`full`, `decoder` (the encoder is frozen) or `none`."""

    @abstractmethod
    def encode(self, images: Tensor) -> Posterior: ...

    def moments(self, images: Tensor) -> Tensor:
        """Return what the encoder network says of images, (B, M, h, w), from which `posterior` follows.

        An autoencoder that gives both lets `training.cache_latents` keep the moments of all images on disk.

        Raises:
            NotImplementedError: for an autoencoder that has only `encode`.
        """
        raise NotImplementedError(f"{type(self).__name__} gives no moments")

    def posterior(self, moments: Tensor) -> Posterior:
        """Return q(z given x) from the moments (B, M, h, w) of x: `encode(x)` is `posterior(moments(x))`."""
        raise NotImplementedError(f"{type(self).__name__} takes no moments")

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B, 3, H, W), not clamped."""

    @abstractmethod
    def last_layer(self) -> nn.Parameter:
        """The decoder's last weight, where the adaptive adversarial weight measures gradient norms."""

    def self_contained_options(self) -> dict[str, Any] | None:
        """Return options that build the same architecture without fetching pretrained weights.

        A run directory keeps them beside its weights, so that it needs nothing else. None: the configuration's own
        options already do.
        """
        return None

    @classmethod
    def geometry(cls, options: Any) -> tuple[int, int] | None:
        """Return (factor, latent_channels) as far as the options alone tell, for checks before anything is built.

        Raises:
            ConfigError: if the options clash.
        """
        return None

    def latent_shape(self, image_size: int) -> tuple[int, int, int]:
        """Return (C, h, w) for square images of `image_size` pixels."""
        return (self.latent_channels, image_size // self.factor, image_size // self.factor)


class Example(NamedTuple):
    """One element of a data set: `image` uint8 (3, H, W) in [0, 255], `label` an int or `NO_LABEL`."""

    image: Tensor
    label: int


@dataclass(frozen=True)
class DataContext:
    """What the harness tells a data set: `image_size` in pixels, `split` 'train' or 'test', the run's `seed`."""

    image_size: int
    split: str
    seed: int = 0


class ImageDataset(Protocol):
    """A map-style data set of square uint8 images, built as `factory(options, context)`."""

    num_classes: int | None
    class_names: list[str] | None

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Example: ...
