"""A perceptual loss on the features of any timm backbone with a local checkpoint.

For data where LPIPS cannot be had, or its ImageNet backbone is a poor measure: a backbone that was trained on
the data at hand. Per layer, features are normalised to unit length at each position, and their squared
distance is averaged over positions; the loss is the mean over layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simflow_plugin.alignment.encoder_weights import find_weights, load_weights
from simflow_plugin.alignment.timm_names import check_timm_name
from simflow_plugin.contracts import DataContext
from simflow_plugin.convolution_layout import convolution_layout
from simflow_plugin.errors import ConfigError
from simflow_plugin.losses.options import Colour, TimmLossOptions
from simflow_plugin.losses.perceptual import PerceptualLoss, freeze
from simflow_plugin.registry import RECONSTRUCTION_LOSSES

CHECKPOINT = "checkpoint of the timm loss"


@dataclass(frozen=True)
class Backbone:
    """A network with the mean and standard deviation that it expects of images in [0, 1].

    Args:
        network: a timm model with `forward_intermediates`.
        mean, std: by channel.
        image_size: in pixels, if it accepts no other.
    """

    network: Any
    mean: Colour
    std: Colour
    image_size: int | None = None


@RECONSTRUCTION_LOSSES.register("timm")
class TimmLoss(PerceptualLoss):
    """Mean squared distance of unit-length features.

    Args:
        options: see `TimmLossOptions`.
        context: what the harness knows; with its `image_size`, if any, the backbone is tried once.
    Raises:
        ConfigError: if timm has no such backbone, or the backbone does not accept the layers or the image
        size. WeightsError: if the checkpoint is missing, torn or of another architecture; weights are
        never random.
    """

    Options = TimmLossOptions
    mean: Tensor
    std: Tensor

    def __init__(self, options: TimmLossOptions, context: DataContext | None = None) -> None:
        super().__init__()
        self.options = options
        backbone = load_backbone(options)
        self.resize = options.resize or backbone.image_size
        self.network: Any = freeze(backbone.network)
        for name, numbers in (("mean", options.mean or backbone.mean), ("std", options.std or backbone.std)):
            self.register_buffer(name, torch.tensor(numbers).reshape(3, 1, 1), persistent=False)
        size = self.resize or (context.image_size if context is not None else None)
        if size is not None:
            self._try(size)

    def _distance(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        pairs = zip(self._features(reconstruction), self._features(images), strict=True)
        distances = [(a - b).square().sum(1).mean() for a, b in pairs]
        return torch.stack(distances).mean()

    def _features(self, images: Tensor) -> list[Tensor]:
        """Return unit-length features (B, F, h', w') by layer, for images (B, 3, H, W) in [-1, 1]."""
        if self.resize is not None and tuple(images.shape[-2:]) != (self.resize, self.resize):
            size = (self.resize, self.resize)
            images = nn.functional.interpolate(images, size, mode="bicubic", antialias=True)
        images = ((images + 1) / 2 - self.mean) / self.std
        layers = self.network.forward_intermediates(
            convolution_layout(images),
            indices=self.options.layers,
            intermediates_only=True,
            stop_early=True,  # nothing is computed beyond the last layer that is compared
        )
        return [nn.functional.normalize(features, dim=1) for features in layers]

    def _try(self, image_size: int) -> None:
        try:
            with torch.no_grad():
                self._features(torch.zeros(1, 3, image_size, image_size))
        except (AssertionError, RuntimeError, IndexError, ValueError) as error:  # what timm's models raise
            raise ConfigError(
                f"timm loss: `{self.options.backbone or self.options.checkpoint}` does not accept images "
                f"of {image_size} pixels with layers {self.options.layers}: {error}. Set resize, layers, "
                "or arguments (`dynamic_img_size: true`)"
            ) from error


def load_backbone(options: TimmLossOptions) -> Backbone:
    """Return the backbone with the weights of its checkpoint.

    Raises:
        ConfigError: if timm has no such backbone, or it gives no intermediate features.
        WeightsError: if the checkpoint is missing, torn or of another architecture.
    """
    if options.backbone is not None:
        return _load_by_name(options.backbone, options.checkpoint, options.arguments)
    if options.checkpoint is None:
        raise ConfigError(
            "timm loss: name a `backbone` of timm, or the `checkpoint` of `simflow pretrain-encoder`"
        )
    if options.arguments:
        raise ConfigError("timm loss: arguments have no effect without `backbone`: remove them, or name one")
    from simflow_plugin.alignment.classifier import load_classifier

    network, card = load_classifier(Path(options.checkpoint).expanduser())
    return Backbone(network, card.mean, card.std, card.architecture["img_size"])


def _load_by_name(name: str, checkpoint: str | None, arguments: dict[str, Any]) -> Backbone:
    import timm  # imported here: it takes seconds

    check_timm_name(name, "timm loss: backbone")
    path = find_weights(name, checkpoint, CHECKPOINT)
    try:
        network: Any = timm.create_model(name, pretrained=False, num_classes=0, **arguments)
    except TypeError as error:
        raise ConfigError(f"timm loss: arguments {arguments} do not suit `{name}`: {error}") from error
    if not hasattr(network, "forward_intermediates"):
        raise ConfigError(
            f"timm loss: `{name}` gives no intermediate features; name a ViT, ResNet or ConvNeXt"
        )
    load_weights(network, path, CHECKPOINT)
    return Backbone(network, network.pretrained_cfg["mean"], network.pretrained_cfg["std"])
