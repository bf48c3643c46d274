"""Options of the frozen encoders."""

from __future__ import annotations

from pydantic import Field

from simflow_plugin.local_paths import LocalPath
from simflow_plugin.options import Options
from simflow_plugin.published_weights import MODEL_BY_PRESET
from simflow_plugin.registry import ENCODERS


class WeightsOptions(Options):
    """Options that all timm encoders share."""

    checkpoint: LocalPath | None = Field(None, description="file of the weights; null: the local caches")
    input_size: int | None = Field(
        None,
        gt=0,
        description="pixels at which the encoder sees the image; null: 16 x 16 features of a vision transformer for "
        "256 pixels, the image as it is for a convolutional network",
    )
    stage: int | None = Field(
        None,
        ge=0,
        description="block of a transformer or stage of a convolutional network, from 0, as in timm's "
        "forward_intermediates; null: the last",
    )


for _name, _model in MODEL_BY_PRESET.items():
    ENCODERS.declare(_name, "simflow_plugin.alignment.timm_encoders", f"timm's `{_model}`.")(WeightsOptions)


@ENCODERS.declare("timm", "simflow_plugin.alignment.timm_encoders")
class TimmOptions(WeightsOptions):
    """Options of the encoder `timm`: any network by its name."""

    model: str = Field(description="name in timm, with its tag if any: vit_base_patch14_dinov2.lvd142m")


@ENCODERS.declare("pretrained", "simflow_plugin.alignment.classifier")
class ClassifierOptions(Options):
    """Options of the encoder `pretrained`: a classifier of `simflow pretrain-encoder`."""

    checkpoint: LocalPath = Field(description="file made by `simflow pretrain-encoder`")
