"""Features of one layer of a timm network as tokens: of vision transformers and convolutional networks alike.

A layer goes by its number in timm's `forward_intermediates`, from 0: a block of a transformer, a stage of a
convolutional network. Without a number it is a vision transformer's output, normalised and without prefix tokens, or
a convolutional network's last stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from simflow_plugin.convolution_layout import convolution_layout
from simflow_plugin.errors import ConfigError

Grid = tuple[int, int]


@dataclass(frozen=True)
class FeatureLayer:
    """The layer whose features are read.

    Args:
        stage: its number, from 0; None for a vision transformer's output.
        grid: (rows, columns) of its features.
        num_channels: F.
    """

    stage: int | None
    grid: Grid
    num_channels: int


def read_features(network: Any, pixels: Tensor, stage: int | None) -> Tensor:
    """Return the features (B, N, F) of layer `stage`, in raster order, of normalised images (B, 3, H, W)."""
    if stage is None:
        return network.forward_features(pixels)[:, network.num_prefix_tokens :]
    (maps,) = network.forward_intermediates(
        convolution_layout(pixels), indices=[stage], intermediates_only=True, stop_early=True
    )
    return maps.flatten(2).transpose(1, 2)  # (B, F, h, w) -> (B, N, F)


def find_layer(network: nn.Module, model: str, input_size: int, stage: int | None) -> FeatureLayer:
    """Return the layer `stage` of a timm network, its shapes found by a pass without numbers.

    Args:
        network: on the meta device.
        model: its name, for messages.
        input_size: of the images it will see, in pixels.
        stage: see `FeatureLayer`; None for the last.
    Raises:
        ConfigError: if it has no such layer, gives no features in a grid, or does not accept the size.
    """
    if stage is None and not is_transformer(network):
        stage = num_stages(network, model) - 1
    if stage is not None and not 0 <= stage < num_stages(network, model):
        raise ConfigError(
            f"alignment.encoder.stage {stage}: `{model}` has {num_stages(network, model)} "
            f"{'blocks' if is_transformer(network) else 'stages'}, 0 to {num_stages(network, model) - 1}."
        )
    images = torch.zeros(1, 3, input_size, input_size, device="meta")
    try:
        with torch.no_grad():
            _, num_tokens, num_channels = read_features(network.eval(), images, stage).shape
    except (AssertionError, RuntimeError, ValueError, TypeError) as error:  # what timm's networks raise
        raise ConfigError(
            f"alignment.encoder: `{model}` gives no features of images of {input_size} pixels: {error}. Set "
            "alignment.encoder.input_size to a size that it accepts."
        ) from error
    side = round(num_tokens**0.5)
    if side * side != num_tokens:
        raise ConfigError(
            f"alignment.encoder: the {num_tokens} features of `{model}` are not a square grid. Choose another stage "
            "or network."
        )
    return FeatureLayer(stage, (side, side), num_channels)


def is_transformer(network: nn.Module) -> bool:
    """Return whether this is a plain vision transformer: one grid of square patches, then blocks."""
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    return patch is not None and patch[0] == patch[1] and hasattr(network, "num_prefix_tokens")


def num_stages(network: Any, model: str) -> int:
    """Return how many layers `forward_intermediates` can give.

    Raises:
        ConfigError: if the network gives no intermediate features.
    """
    if not hasattr(network, "forward_intermediates"):
        raise ConfigError(
            f"alignment.encoder.model: `{model}` gives no intermediate features. Choose a network of timm with "
            "`forward_intermediates`: a ViT, ResNet, ConvNeXt or EfficientNet."
        )
    return len(network.feature_info)
