"""Frozen encoders of timm as alignment targets: any network with intermediate features, common ones by a short name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from simflow_plugin import options, registry
from simflow_plugin.alignment.encoder import FrozenEncoder, choose_input_size
from simflow_plugin.alignment.encoder_weights import find_weights, load_weights
from simflow_plugin.alignment.feature_layer import FeatureLayer, find_layer, is_transformer
from simflow_plugin.alignment.options import TimmOptions, WeightsOptions
from simflow_plugin.alignment.timm_names import check_timm_name
from simflow_plugin.contracts import DataContext, NetworkOutline
from simflow_plugin.errors import ConfigError
from simflow_plugin.published_weights import MODEL_BY_PRESET

PIXELS_PER_FEATURE = {14: 16}
"""Pixels of the image per feature, by patch size, where that is not the patch itself."""


@registry.ENCODERS.register("timm")
class TimmEncoder(FrozenEncoder):
    """Any timm network with `forward_intermediates`, with normalisation from timm's data configuration.

    Args:
        options: model, weights, input size, stage.
        context: the image size counts.
    Raises:
        ConfigError: if timm has no such model, it gives no such features, or a patch does not divide the image.
        WeightsError: if the weights are missing or of another architecture.
    """

    Options = TimmOptions

    def __init__(self, options: TimmOptions, context: DataContext) -> None:
        import timm

        plan = plan_encoder(options.model, context.image_size, options.input_size, options.stage)
        path = find_weights(options.model, options.checkpoint)
        network = timm.create_model(options.model, pretrained=False, num_classes=0, **plan.arguments)
        load_weights(network, path)
        config = timm.data.resolve_model_data_config(network)
        super().__init__(
            network, context.image_size, plan.input_size, plan.layer, config["mean"], config["std"]
        )

    @staticmethod
    def outline(options: TimmOptions, context: DataContext) -> NetworkOutline:
        """Return the network without weights, the pixels that it sees, and the shape of its features."""
        return plan_encoder(options.model, context.image_size, options.input_size, options.stage).outline()


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
        return plan_encoder(self.model, context.image_size, options.input_size, options.stage).outline()


for _name, _model in MODEL_BY_PRESET.items():
    registry.ENCODERS.register(_name)(Preset(_model))


@dataclass(frozen=True)
class EncoderPlan:
    """An encoder before its weights.

    Args:
        network: on the meta device.
        input_size: in pixels.
        layer: whose features are read.
        arguments: of `timm.create_model` beside the name.
    """

    network: nn.Module
    input_size: int
    layer: FeatureLayer
    arguments: dict[str, Any]

    def outline(self) -> NetworkOutline:
        """Return the network, the pixels that it sees, and the shape of its features, for `simflow plan`."""
        rows, columns = self.layer.grid
        return NetworkOutline(self.network, self.input_size, (rows * columns, self.layer.num_channels))


def plan_encoder(model: str, image_size: int, input_size: int | None, stage: int | None) -> EncoderPlan:
    """Resolve the input size and the layer of a timm network, without making its weights.

    Args:
        model: name in timm.
        image_size: of the images it will be given, in pixels.
        input_size: as configured; None for the usual.
        stage: see `FeatureLayer`.
    Raises:
        ConfigError: see `TimmEncoder`.
    """
    network = network_on_meta(model)
    arguments: dict[str, Any] = {}
    if is_transformer(network):
        patch: Any = network.patch_embed.patch_size  # type: ignore[union-attr]
        per_feature = PIXELS_PER_FEATURE.get(patch[0], patch[0])
        input_size = choose_input_size(image_size, patch[0], input_size, per_feature)
    input_size = input_size or image_size
    if network.pretrained_cfg.get("fixed_input_size", is_transformer(network)):  # type: ignore[operator,union-attr]
        arguments = {"img_size": input_size}
        network = network_on_meta(model, **arguments)
    return EncoderPlan(network, input_size, find_layer(network, model, input_size, stage), arguments)


def network_on_meta(model: str, **arguments: Any) -> nn.Module:
    """Return a timm network without numbers and without a classifier.

    Raises:
        ConfigError: if timm has no such model, with the nearest names, or it does not accept the arguments.
    """
    import timm
    import torch

    check_timm_name(model, "alignment.encoder.model")
    architecture = model.split(".")[0]
    try:
        with torch.device("meta"):
            return timm.create_model(architecture, pretrained=False, num_classes=0, **arguments)
    except (TypeError, AssertionError, ValueError) as error:
        raise ConfigError(
            f"alignment.encoder: timm cannot build `{model}` with {arguments}: {error}. Set "
            "alignment.encoder.input_size to a size that it accepts."
        ) from error
