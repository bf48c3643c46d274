"""The interfaces between the harness and its parts: what a new part implements, and what it may add.

A part is built as `factory(options, context)`; its `Options.check(context)` refuses values before anything is built.
What a part may add is a method with a default here, or a protocol of its own (`ReadsBatches`, ...): the harness looks
for no other attribute. `CONTRACT_VERSION` counts the changes that break parts; options state the version that they
were written for as `contract_version`.

Data flows one way: images -> posterior -> latents -> model (training); noise -> latents -> images (sampling).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from simflow_plugin.contexts import NO_LABEL as NO_LABEL
from simflow_plugin.contexts import AlignmentContext as AlignmentContext
from simflow_plugin.contexts import AutoencoderFacts, ModelFacts, PosteriorFacts
from simflow_plugin.contexts import DataContext as DataContext
from simflow_plugin.contexts import ModelContext as ModelContext
from simflow_plugin.contexts import PosteriorContext as PosteriorContext
from simflow_plugin.errors import ShapeError, WeightsError
from simflow_plugin.options import CONTRACT_VERSION as CONTRACT_VERSION
from simflow_plugin.randomness import Random

if TYPE_CHECKING:
    from pathlib import Path


class SamplerFacts(NamedTuple):
    """A model's sampler, for tables.

    `name` of the sampler; `passes`: sequential evaluations of a network for one batch of samples, whatever its size
    and with both halves of guidance counted as one; None where the number depends on values.
    """

    name: str
    passes: int | None


class GenerativeModel(ModelFacts, nn.Module, ABC):
    """A generative model of latents in the harness; the loop knows no more of it than this.

    Subclasses are built as `factory(options, context)` and declare `Options`.
    """

    supports_guidance: bool = False
    """True if `sample` accepts guidance > 0 (it needs label dropout in training)."""

    noise_std: float = 0.0
    """Std of the noise that the model itself adds to latents in training (STARFlow), in their normalised units."""

    guide: GenerativeModel | None = None
    """With autoguidance, the weaker model in place of the unconditional half of guidance; see `GuidedByWeaker`."""

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

    def sampler_facts(self) -> SamplerFacts:
        """Return the name of the sampler and the sequential passes of one batch."""
        return SamplerFacts(type(self).__name__, None)

    def check_guidance(self, guidance: float) -> None:
        """Refuse a weight that `sample` cannot be called with, beyond `supports_guidance`.

        Raises:
            ConfigError: naming the weights that it can.
        """

    def attach_decoder(self, decode: Callable[[Tensor], Tensor], image_size: int) -> None:
        """Take the autoencoder's decoder, latents (B, C, h, w) -> images; most models do without.

        Called once, before training, for a model whose own terms compare images, of `image_size` pixels.
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

    def token_flow(self) -> Any:
        """Return the `TransformerFlow` that is the model's density, or None without one.

        `simflow analyze` looks into it, and `simflow distill` learns its inverse.

        A model with a flow has `tokens(latents)` too, from (B, C, h, w) to the flow's (B, T, D), and its inverse
        `latents(tokens)`.
        """
        return None


class Posterior(Protocol):
    """q(z given x), a diagonal Gaussian over latents (B, C, h, w)."""

    mean: Tensor
    std: Tensor

    @property
    def learns_variance(self) -> bool:
        """True if the encoder predicts the variance, so that the objective adds an entropy or KL term to it."""

    def sample(self, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor: ...
    def mode(self) -> Tensor: ...
    def kl(self) -> Tensor: ...
    def entropy(self) -> Tensor: ...
    def log_prob(self, latents: Tensor) -> Tensor: ...
    def normalized(self, shift: Tensor, scale: Tensor) -> Posterior:
        """Return the distribution of (z - shift) * scale, with shift and scale > 0 that broadcast to z."""


class MomentsMap(NamedTuple):
    """A linear map of an encoder's M outputs to a mean and a log-variance per channel.

    Args:
        weight: (2 C, M); the first C rows give the mean.
        bias: (2 C,).
    """

    weight: Tensor
    bias: Tensor


class PosteriorHead(PosteriorFacts, nn.Module, ABC):
    """A map from the encoder's output, the moments, to q(z given x); the encoder is built to fit it.

    Subclasses register in `posteriors`. `simflow_plugin.posteriors.gaussian` has Gaussians to return.

    Args:
        options: of the head.
        context: number of latent channels.
    Raises:
        ConfigError: if the options do not fit the context.
    """

    def __init__(self, options: Any, context: PosteriorContext) -> None:
        super().__init__()
        options.check(context)
        self.options = options
        self.latent_channels = context.latent_channels

    @property
    def num_moments(self) -> int:
        """M, channels that the encoder returns; C unless overridden."""
        return self.latent_channels

    @abstractmethod
    def posterior(self, moments: Tensor) -> Posterior:
        """Return the posterior of moments (B, M, h, w), float32 or wider."""

    def forward(self, moments: Tensor) -> Posterior:
        """Return the posterior of `moments`, (B, M, h, w), in float32 or wider whatever the compute type.

        Raises:
            ShapeError: if the number of channels differs.
        """
        if moments.dim() != 4 or moments.shape[1] != self.num_moments:
            raise ShapeError(
                f"moments have shape {tuple(moments.shape)}, but {type(self).__name__} with "
                f"{self.latent_channels} latent channels expects (B, {self.num_moments}, h, w)"
            )
        # Half precision has too few digits for a likelihood, which sums over all dimensions.
        return self.posterior(moments.to(torch.promote_types(moments.dtype, torch.float32)))

    def kept_moments(self, num_found: int) -> int:
        """Return how many of a pretrained encoder's outputs this head starts from: the first ones.

        Args:
            num_found: outputs of the pretrained encoder; C means, or C means and C log-variances, as a rule.
        Raises:
            WeightsError: if they are not what the head reads.
        """
        if num_found == self.num_moments or (num_found > self.num_moments == self.latent_channels):
            return self.num_moments
        raise WeightsError(
            f"the pretrained encoder returns {num_found} channels, but {type(self).__name__} reads {self.num_moments} "
            f"for {self.latent_channels} latent channels; choose another posterior, or other weights"
        )

    def as_moments(self) -> MomentsMap:
        """Return the map to the 2 C moments of diffusers' AutoencoderKL, for export; on the CPU.

        Raises:
            WeightsError: if its (mean, log-variance) cannot express this posterior; so unless overridden.
        """
        raise WeightsError(
            f"posterior {type(self).__name__}: cannot be written as the mean and log-variance of diffusers' "
            "AutoencoderKL. Export to a .safetensors file."
        )


class Autoencoder(AutoencoderFacts, nn.Module, ABC):
    """Images (B, 3, H, W) in [-1, 1] <-> latents (B, C, H / factor, W / factor).

    Latents are in the normalised space: a fixed per-channel (or scalar) shift and scale of the raw latents are
    part of the autoencoder, applied in `encode` and undone in `decode`.
    """

    factor: int
    latent_channels: int
    trainable: str
    """`full`, `decoder` (the encoder is frozen) or `none`."""

    @abstractmethod
    def encode(self, images: Tensor) -> Posterior: ...

    def moments(self, images: Tensor) -> Tensor:
        """Return the encoder network's output for images, (B, M, h, w), from which `posterior` follows.

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

    def latent_shape(self, image_size: int) -> tuple[int, int, int]:
        """Return (C, h, w) for square images of `image_size` pixels."""
        return (self.latent_channels, image_size // self.factor, image_size // self.factor)


@runtime_checkable
class GuidedByWeaker(Protocol):
    """A generative model that a weaker one can guide in place of its unconditional half (autoguidance)."""

    def guided_by(self, weaker: GenerativeModel) -> GenerativeModel:
        """Return this model, its weights shared, guided by `weaker`.

        Raises:
            ConfigError: if the two do not fit.
        """


@runtime_checkable
class ExportableAutoencoder(Protocol):
    """An autoencoder that `simflow export` can write: normalised latents, a file of its state, a diffusers folder."""

    latent_channels: int

    def fit_normalization(self, mean: Tensor, std: Tensor) -> None:
        """Make latents zero-mean and unit-variance, from the mean and std > 0 (C,) of latents as encoded now."""

    def to_diffusers(self) -> Any:
        """Return a diffusers AutoencoderKL on the CPU that encodes and decodes alike.

        Raises:
            WeightsError: if diffusers cannot express the posterior.
        """

    def options_to_load(self, exported: Path) -> dict[str, Any]:
        """Return the part, `name` and options, that reads back its state file or diffusers folder, frozen."""


@dataclass(frozen=True)
class NetworkOutline:
    """A frozen network of a loss or an alignment encoder without its weights, for `simflow plan`.

    Args:
        network: on the meta device.
        image_size: pixels of the images that it sees.
        feature_shape: (N, F) of an alignment encoder's features; None for a loss.
    """

    network: nn.Module
    image_size: int
    feature_shape: tuple[int, int] | None = None


@runtime_checkable
class Outlines(Protocol):
    """A factory of encoders or losses whose work can be counted before its weights are at hand."""

    def outline(self, options: Any, context: DataContext) -> NetworkOutline | None:
        """Return the network that options and context ask for, or None if there is none.

        It is called under `accelerate.init_empty_weights`.
        """


@runtime_checkable
class AlignmentEncoder(Protocol):
    """A frozen encoder: a module built as `factory(options, DataContext)`, with constant parameters."""

    feature_dim: int
    """F, channels of its features."""

    def encode(self, images: Tensor) -> Tensor:
        """Return features (B, N, F) in raster order over a square grid, of images (B, 3, H, W) in [-1, 1]."""


class Example(NamedTuple):
    """One element of a data set: `image` uint8 (3, H, W) in [0, 255], `label` an int or `NO_LABEL`."""

    image: Tensor
    label: int


class ImageDataset(Protocol):
    """A map-style data set of square uint8 images, built as `factory(options, context)`."""

    num_classes: int | None
    class_names: list[str] | None

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Example: ...


@runtime_checkable
class ReadsBatches(Protocol):
    """A data set that reads many images faster together than one by one."""

    def read_batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return uint8 images (B, 3, H, W) and int64 labels (B,)."""


@runtime_checkable
class DescribesContent(Protocol):
    """A data set that knows which images it holds, so that what is cached of others is never read for them."""

    def content_facts(self) -> dict[str, Any]:
        """Return paths, names, sizes and times of its files, or a digest of its pixels."""


@runtime_checkable
class ToleratesCorruption(Protocol):
    """A data set of files, some of which may be damaged: `__getitem__` raises `CorruptImage` for those."""

    max_corrupt_share: float
    """Share of the images, in [0, 1], that may be damaged before a run stops."""


@runtime_checkable
class HasLabels(Protocol):
    """A data set whose labels are known without reading images."""

    labels: Tensor
    """(N,) int64."""


@runtime_checkable
class ReadsContent(Protocol):
    """A data set that tells one image from another by the bytes it is stored as."""

    def read_content(self, index: int) -> bytes:
        """Return the encoded file of one image, or its original pixels; raise `CorruptImage` if it is unreadable."""


@runtime_checkable
class CountsIgnored(Protocol):
    """A data set that counts what it left out of its source."""

    ignored: dict[str, int]
    """Number of files, folders or members that are no image, by kind."""


@runtime_checkable
class NamesImages(Protocol):
    """A data set whose images have names."""

    def describe(self, index: int) -> str:
        """Return the name of one image for a message: its path, as a rule."""
