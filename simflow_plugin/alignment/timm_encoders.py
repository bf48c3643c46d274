"""Frozen encoders of timm as alignment targets: any vision transformer, the common ones by a short name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from simflow_plugin import options, registry
from simflow_plugin.alignment.encoder import FrozenEncoder, choose_input_size
from simflow_plugin.alignment.encoder_weights import find_weights, load_weights
from simflow_plugin.alignment.timm_names import check_timm_name
from simflow_plugin.contracts import DataContext, NetworkOutline
from simflow_plugin.errors import ConfigError

MODEL_BY_PRESET = {
    "dinov2-b": "vit_base_patch14_dinov2.lvd142m",
    "dinov2-l": "vit_large_patch14_dinov2.lvd142m",
    "dinov2-b-reg": "vit_base_patch14_reg4_dinov2.lvd142m",
    "dinov2-l-reg": "vit_large_patch14_reg4_dinov2.lvd142m",
    "dinov3-b": "vit_base_patch16_dinov3.lvd1689m",
    "mae-b": "vit_base_patch16_224.mae",
    "mae-l": "vit_large_patch16_224.mae",
    "clip-l": "vit_large_patch14_clip_quickgelu_224.openai",
}
PIXELS_PER_FEATURE = {14: 16}
"""Pixels of the image per feature, by patch size, where that is not the patch itself."""


class WeightsOptions(options.Options):
    """Options that all timm encoders share."""

    checkpoint: str | None = Field(None, description="file of the weights; null: the local caches")
    input_size: int | None = Field(
        None,
        gt=0,
        description="pixels at which the encoder sees the image; null: 16 x 16 features for 256 pixels",
    )


@registry.ENCODERS.register("timm")
class TimmEncoder(FrozenEncoder):
    """Any timm vision transformer that accepts `img_size`, with normalisation from timm's data configuration.

    Args:
        options: model, weights, input size.
        context: the image size counts.
    Raises:
        ConfigError: if timm has no such model, it is not a vision transformer, or the patch does not divide
            the image.
        WeightsError: if the weights are missing or of another architecture.
    """

    class Options(WeightsOptions):
        model: str = Field(description="name in timm, with its tag: vit_base_patch14_dinov2.lvd142m")

    def __init__(self, options: Options, context: DataContext) -> None:
        import timm

        patch_size, input_size = _sizes(options.model, options.input_size, context)
        path = find_weights(options.model, options.checkpoint)
        network = timm.create_model(options.model, pretrained=False, num_classes=0, img_size=input_size)
        load_weights(network, path)
        config = timm.data.resolve_model_data_config(network)
        super().__init__(network, context.image_size, input_size, patch_size, config["mean"], config["std"])

    @staticmethod
    def outline(options: Options, context: DataContext) -> NetworkOutline:
        """Return the network without weights, the pixels that it sees, and the shape of its features."""
        return _outline(options.model, options.input_size, context)


@dataclass(frozen=True)
class Preset:
    """A factory for one published encoder.

    Args:
        model: name in timm.
    """

    model: str
    Options: ClassVar[type[options.Options]] = WeightsOptions

    def __call__(self, options: Any, context: DataContext) -> TimmEncoder:
        return TimmEncoder(TimmEncoder.Options(model=self.model, **options.model_dump()), context)

    def outline(self, options: Any, context: DataContext) -> NetworkOutline:
        """Return the network without weights; see `TimmEncoder.outline`."""
        return _outline(self.model, options.input_size, context)


for _name, _model in MODEL_BY_PRESET.items():
    registry.ENCODERS.register(_name)(Preset(_model))


def _sizes(model: str, input_size: int | None, context: DataContext) -> tuple[int, int]:
    """Return the patch size of the network and the pixels that it sees."""
    patch_size = patch_size_of(model)
    per_feature = PIXELS_PER_FEATURE.get(patch_size, patch_size)
    return patch_size, choose_input_size(context.image_size, patch_size, input_size, per_feature)


def _outline(model: str, input_size: int | None, context: DataContext) -> NetworkOutline:
    import timm

    patch_size, size = _sizes(model, input_size, context)
    network: Any = timm.create_model(model.split(".")[0], pretrained=False, num_classes=0, img_size=size)
    return NetworkOutline(network, size, ((size // patch_size) ** 2, int(network.num_features)))


def patch_size_of(model: str) -> int:
    """Return the patch size of a timm vision transformer, without making its weights.

    Raises:
        ConfigError: if timm has no such model, with the nearest names, or it has no square patches.
    """
    import timm
    import torch

    check_timm_name(model, "alignment.encoder.model")
    architecture = model.split(".")[0]
    with torch.device("meta"):
        network: nn.Module = timm.create_model(architecture, pretrained=False)
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    if patch is None or patch[0] != patch[1] or not hasattr(network, "num_prefix_tokens"):
        raise ConfigError(
            f"alignment.encoder.model: `{model}` is not a vision transformer with square patches."
        )
    return int(patch[0])
