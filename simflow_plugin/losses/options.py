"""Options of the reconstruction losses and of the adversarial loss."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from simflow_plugin.contexts import DataContext
from simflow_plugin.errors import ShapeError
from simflow_plugin.local_paths import LocalPath
from simflow_plugin.options import MomentDecay, Options, Size
from simflow_plugin.registry import RECONSTRUCTION_LOSSES

Colour = tuple[float, float, float]


@RECONSTRUCTION_LOSSES.declare("timm", "simflow_plugin.losses.timm_loss")
class TimmLossOptions(Options):
    """Options of the timm perceptual loss."""

    backbone: str | None = Field(
        None,
        description="timm's name of the backbone; null: the checkpoint is one of `simflow pretrain-encoder`, "
        "and holds its architecture.",
    )
    checkpoint: LocalPath | None = Field(
        None,
        description="its weights, in a layout that timm reads: .safetensors, .pth or .bin; null: the local caches "
        "and packages.",
    )
    layers: list[int] | None = Field(None, description="stages (blocks of a ViT) to compare; default all.")
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="more arguments of the backbone, such as `patch_size: 4`."
    )
    resize: Size | None = Field(
        None, description="image size in pixels that the backbone sees; default as is."
    )
    mean: Colour | None = Field(None, description="of images in [0, 1]; default the backbone's.")
    std: Colour | None = Field(None, description="of images in [0, 1]; default the backbone's.")


@RECONSTRUCTION_LOSSES.declare("l1", "simflow_plugin.losses.pixel")
@RECONSTRUCTION_LOSSES.declare("l2", "simflow_plugin.losses.pixel")
class PixelOptions(Options):
    """Pixel losses have no options; their weight belongs to the sum."""


LPIPS_MIN_IMAGE_SIZE = {"vgg": 16, "alex": 31}
"""Pixels of the smallest image that each backbone of LPIPS accepts."""


@RECONSTRUCTION_LOSSES.declare("lpips", "simflow_plugin.losses.lpips_loss")
class LPIPSOptions(Options):
    """Options of the LPIPS loss."""

    net: Literal["vgg", "alex"] = Field("vgg", description="backbone; `vgg` is the usual one for training.")
    backbone_path: LocalPath | None = Field(
        None, description="torchvision's weights of the backbone; default: torch's hub cache."
    )

    def check(self, context: DataContext) -> None:
        check_lpips_size(context.image_size, self.net)


def check_lpips_size(image_size: int, net: str) -> None:
    """Check that images of `image_size` pixels are large enough for the backbone of LPIPS.

    Raises:
        ShapeError: if they are not.
    """
    smallest = LPIPS_MIN_IMAGE_SIZE[net]
    if image_size < smallest:
        raise ShapeError(
            f"lpips: images of {image_size} pixels are too small for `{net}`, which needs {smallest}; use larger "
            "images or another reconstruction loss"
        )


KERNEL, PADDING = 4, 1
LAYER_STRIDE_ONE = 2
"""Convolutions at the end, each of which takes one pixel off: the last hidden layer, and the logits."""
Norm = Literal["batch", "spectral", "none"]


def check_image_size(image_size: int, num_layers: int) -> None:
    """Check that images of `image_size` pixels leave one logit or more.

    Raises:
        ShapeError: if they do not.
    """
    side = image_size
    for _ in range(num_layers):
        side = (side + 2 * PADDING - KERNEL) // 2 + 1
    if side - LAYER_STRIDE_ONE < 1:
        raise ShapeError(
            f"adversarial.num_layers: {num_layers} strided layers leave no patch of a {image_size}-pixel "
            "image; lower num_layers"
        )


class AdversarialOptions(Options):
    """Options of the adversarial loss."""

    weight: NonNegativeFloat = Field(
        0.1, description="of the generator's term; times the adaptive weight, if used."
    )
    uses_adaptive_weight: bool = Field(
        True,
        description="balance the gradient norms of reconstruction and adversary at the decoder's last layer.",
    )
    start_step: NonNegativeInt = Field(
        0, description="first optimizer step with the adversary, counted from 0."
    )
    width: Size = Field(64, description="of the discriminator's first layer.")
    num_layers: Size = Field(3, description="strided layers; fewer for small images.")
    norm: Norm = Field("batch", description="normalisation in the discriminator.")
    lecam_weight: NonNegativeFloat = Field(0.0, description="of the LeCam regularisation; 0: off.")
    lecam_decay: float = Field(
        0.999, ge=0, lt=1, description="of the averages of the logits that LeCam pulls to."
    )
    r1_weight: NonNegativeFloat = Field(0.0, description="gamma of the R1 gradient penalty; 0: off.")
    learning_rate: PositiveFloat = Field(1e-4, description="of the discriminator's Adam.")
    betas: tuple[MomentDecay, MomentDecay] = Field((0.5, 0.9), description="of the discriminator's Adam.")

    def check(self, context: DataContext) -> None:
        check_image_size(context.image_size, self.num_layers)
