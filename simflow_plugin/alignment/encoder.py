"""A frozen encoder: images -> features in raster order, no gradients, never in training mode."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simflow_plugin.alignment.feature_layer import FeatureLayer, Grid, read_features
from simflow_plugin.errors import ConfigError, ShapeError


class FrozenEncoder(nn.Module):
    """A network of timm whose features are alignment targets.

    Args:
        network: timm's, built for square images of `input_size`.
        image_size: of the images it will be given, in pixels.
        input_size: of the images the network sees; images are resized to it.
        layer: whose features are the targets.
        mean, std: of the network's training images, per channel, for pixels in [0, 1].
    Attributes:
        feature_dim: F.
    """

    def __init__(
        self,
        network: nn.Module,
        image_size: int,
        input_size: int,
        layer: FeatureLayer,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.image_size, self.layer = image_size, layer
        self.feature_dim = layer.num_channels
        self.normalization = Normalization(input_size, mean, std)
        self.train(False)

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Stay in evaluation mode, whatever the module around asks for: dropout would move the targets."""
        return super().train(False)

    def grid_size(self, image_size: int) -> Grid:
        """Return (rows, columns) of the features.

        Raises:
            ConfigError: for images of another size than it was built for.
        """
        if image_size != self.image_size:
            raise ConfigError(f"the encoder was built for image_size {self.image_size}, not {image_size}")
        return self.layer.grid

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return features (B, N, F) in raster order, of images (B, 3, H, W) in [-1, 1].

        Raises:
            ShapeError: if the images are not of the size it was built for.
        """
        return read_features(self.network, self.preprocess(images), self.layer.stage)

    def preprocess(self, images: Tensor) -> Tensor:
        """Bring images (B, 3, H, W) in [-1, 1] to the network's size and normalisation."""
        if images.shape[1:] != (3, self.image_size, self.image_size):
            raise ShapeError(
                f"images are {tuple(images.shape)}, expected (B, 3, {self.image_size}, {self.image_size})"
            )
        return self.normalization(images)


class Normalization(nn.Module):
    """Square images (B, 3, H, W) in [-1, 1] -> the size and normalisation of a network.

    Args:
        size: in pixels.
        mean, std: per channel, for pixels in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        pixels = (images + 1) / 2
        if self.size != images.shape[-1]:
            # Bicubic and not antialiased, as the REPA hosts do: other pixels would be other targets.
            pixels = F.interpolate(pixels, (self.size, self.size), mode="bicubic", align_corners=False)
        return (pixels - self.mean) / self.std


def choose_input_size(
    image_size: int, patch_size: int, input_size: int | None, pixels_per_feature: int
) -> int:
    """Return the size at which an encoder sees an image.

    Args:
        image_size: in pixels.
        patch_size: of the encoder.
        input_size: as configured; None for one feature per `pixels_per_feature` pixels of the image.
        pixels_per_feature: 16 in REPA: 256 pixels become 224 for a patch of 14, so that the grid is 16 x 16.
    Raises:
        ConfigError: with the numbers, if something does not divide.
    """
    if input_size is not None:
        if input_size % patch_size:
            raise ConfigError(
                f"alignment.encoder.input_size {input_size} is not divisible by the encoder's patch of "
                f"{patch_size}. Use {max(1, input_size // patch_size) * patch_size}."
            )
        return input_size
    if image_size % pixels_per_feature:
        below = max(1, image_size // pixels_per_feature) * pixels_per_feature
        raise ConfigError(
            f"image_size {image_size} is not divisible by {pixels_per_feature}, the pixels per feature of an "
            f"encoder with a patch of {patch_size}. Use image_size {below}, or set "
            f"alignment.encoder.input_size to a multiple of {patch_size}."
        )
    return image_size // pixels_per_feature * patch_size
