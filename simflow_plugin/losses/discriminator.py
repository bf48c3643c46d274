"""PatchGAN: a convolutional discriminator that judges overlapping patches, one logit each."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from simflow_plugin.losses.options import KERNEL, PADDING, Norm, check_image_size


class PatchDiscriminator(nn.Module):
    """Strided 4x4 convolutions with leaky ReLU, from images to logits of patches.

    Args:
        width: channels after the first layer; doubled by each layer, at most 8 times `width`.
        num_layers: strided layers; each doubles the patch that a logit sees (3: 70 x 70 pixels).
        norm: `batch` (statistics of the batch, always), `spectral`, or `none`.
    Reference:
        Image-to-image translation with conditional adversarial networks, arXiv:1611.07004, section 3.2.
    """

    def __init__(self, width: int, num_layers: int, norm: Norm) -> None:
        super().__init__()
        self.num_layers = num_layers
        widths = [width * min(2**i, 8) for i in range(num_layers + 1)]
        layers: list[nn.Module] = [_convolution(3, width, 2, norm), nn.LeakyReLU(0.2)]
        for i in range(num_layers):
            stride = 2 if i < num_layers - 1 else 1
            has_bias = norm != "batch"
            layers.append(_convolution(widths[i], widths[i + 1], stride, norm, has_bias))
            if norm == "batch":
                # No running statistics: a discriminator is never evaluated, and a forward changes no state.
                layers.append(nn.BatchNorm2d(widths[i + 1], track_running_stats=False))
            layers.append(nn.LeakyReLU(0.2))
        layers.append(_convolution(widths[-1], 1, 1, norm))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, 1, h', w'), high where a patch looks real, for images (B, 3, H, W) in [-1, 1].

        Raises:
            ShapeError: if the images are smaller than one patch.
        """
        check_image_size(min(images.shape[-2:]), self.num_layers)
        return self.layers(images)


def _convolution(in_width: int, out_width: int, stride: int, norm: Norm, has_bias: bool = True) -> nn.Module:
    layer = nn.Conv2d(in_width, out_width, KERNEL, stride, PADDING, bias=has_bias)
    nn.init.normal_(layer.weight, 0.0, 0.02)
    return spectral_norm(layer) if norm == "spectral" else layer
