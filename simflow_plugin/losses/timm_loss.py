"""A perceptual loss on the features of any timm backbone with a local checkpoint.

For data where LPIPS cannot be had, or its ImageNet backbone says little: a backbone that was trained on
the data at hand. Per layer, features are normalised to unit length at each position, and their squared
distance is averaged over positions; the loss is the mean over layers.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from simflow_plugin.autoencoders.weights import load_strictly, read_tensors
from simflow_plugin.errors import ConfigError, WeightsError
from simflow_plugin.losses.perceptual import PerceptualLoss, freeze
from simflow_plugin.options import Options, did_you_mean
from simflow_plugin.registry import RECONSTRUCTION_LOSSES


class TimmLossOptions(Options):
    """Options of the timm perceptual loss."""

    backbone: str = Field(description="timm's name of the backbone.")
    checkpoint: str = Field(description="its weights, in timm's own layout: .safetensors, .pt or .bin.")
    layers: list[int] | None = Field(None, description="stages (blocks of a ViT) to compare; default all.")
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="more arguments of the backbone, such as `patch_size: 4`."
    )
    resize: PositiveInt | None = Field(
        None, description="image size in pixels that the backbone sees; default as is."
    )
    mean: tuple[float, float, float] | None = Field(None, description="of images in [0, 1]; default timm's.")
    std: tuple[float, float, float] | None = Field(None, description="of images in [0, 1]; default timm's.")


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

    def __init__(self, options: TimmLossOptions, context: Any = None) -> None:
        super().__init__()
        self.options = options
        network = load_backbone(options)
        self.network: Any = freeze(network)
        config: dict[str, Any] = network.pretrained_cfg
        for name, given in (("mean", options.mean), ("std", options.std)):
            numbers = torch.tensor(given or config[name]).reshape(3, 1, 1)
            self.register_buffer(name, numbers, persistent=False)
        size = options.resize or getattr(context, "image_size", None)
        if size is not None:
            self._try(size)

    def _distance(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        pairs = zip(self._features(reconstruction), self._features(images), strict=True)
        distances = [(a - b).square().sum(1).mean() for a, b in pairs]
        return torch.stack(distances).mean()

    def _features(self, images: Tensor) -> list[Tensor]:
        """Return unit-length features (B, F, h', w') by layer, for images (B, 3, H, W) in [-1, 1]."""
        if self.options.resize is not None:
            size = (self.options.resize, self.options.resize)
            images = nn.functional.interpolate(images, size, mode="bicubic", antialias=True)
        images = ((images + 1) / 2 - self.mean) / self.std
        layers = self.network.forward_intermediates(
            images, indices=self.options.layers, intermediates_only=True
        )
        return [nn.functional.normalize(features, dim=1) for features in layers]

    def _try(self, image_size: int) -> None:
        try:
            with torch.no_grad():
                self._features(torch.zeros(1, 3, image_size, image_size))
        except (AssertionError, RuntimeError, IndexError, ValueError) as error:  # what timm's models raise
            raise ConfigError(
                f"timm loss: `{self.options.backbone}` does not accept images of {image_size} pixels with "
                f"layers {self.options.layers}: {error}. Set resize, layers, or arguments "
                "(`dynamic_img_size: true`)"
            ) from error


def load_backbone(options: TimmLossOptions) -> Any:
    """Return the backbone with the weights of its checkpoint, without classifier.

    Raises:
        ConfigError: if timm has no such backbone, or it gives no intermediate features.
        WeightsError: if the checkpoint is missing, torn or of another architecture.
    """
    import timm  # imported here: it takes seconds

    name = options.backbone
    if not timm.is_model(name):
        raise ConfigError(
            f"timm loss: timm has no backbone `{name}`.{did_you_mean(name, _similar(timm, name))}"
        )
    path = Path(options.checkpoint).expanduser()
    if not path.is_file():
        origin = getattr(timm.get_pretrained_cfg(name), "hf_hub_id", None)
        address = f" Weights are published at https://huggingface.co/{origin}." if origin else ""
        raise WeightsError(
            f"timm loss: {path}: no such file; set `checkpoint` to the weights of `{name}`.{address}"
        )
    try:
        network: Any = timm.create_model(name, pretrained=False, num_classes=0, **options.arguments)
    except TypeError as error:
        raise ConfigError(
            f"timm loss: arguments {options.arguments} do not suit `{name}`: {error}"
        ) from error
    if not hasattr(network, "forward_intermediates"):
        raise ConfigError(
            f"timm loss: `{name}` gives no intermediate features; name a ViT, ResNet or ConvNeXt"
        )
    classifier = network.pretrained_cfg.get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    dropped = tuple(f"{head}." for head in heads)
    tensors = {key: value for key, value in read_tensors(path).items() if not key.startswith(dropped)}
    load_strictly(network, tensors, str(path))
    return network


def _similar(timm: Any, name: str) -> list[str]:
    """Return the nearest names, so that an error does not list a thousand."""
    return difflib.get_close_matches(name, timm.list_models(), n=8, cutoff=0.5)
