"""Patch embedding by strided convolutions, with which small transformers train faster than with one projection.

Reference: Xiao et al., "Early convolutions help transformers see better", arXiv:2106.14881.
"""

from __future__ import annotations

from torch import Tensor, nn

from simflow_plugin.errors import ConfigError


class ConvStem(nn.Module):
    """Drop-in for timm's `PatchEmbed`: log2(patch_size) convolutions of stride 2, then one of 1 x 1.

    Args:
        img_size, patch_size: in pixels; `patch_size` a power of two.
        in_chans, embed_dim: channels of images and tokens.
    Raises:
        ConfigError: if `patch_size` is not a power of two, at least 2.
    """

    def __init__(
        self, img_size: int, patch_size: int, in_chans: int, embed_dim: int, **timm_extras: object
    ) -> None:
        super().__init__()
        num_halvings = patch_size.bit_length() - 1
        if patch_size < 2 or 2**num_halvings != patch_size:
            raise ConfigError(
                f"patch size {patch_size}: a convolutional stem needs a power of two. Use 2, 4, 8 or 16."
            )
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        layers: list[nn.Module] = []
        channels = in_chans
        for level in reversed(range(num_halvings)):
            width = embed_dim // 2**level
            layers += [nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.GELU()]
            channels = width
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, embed_dim, 1))

    def dynamic_feat_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return the token grid of images of `image_size` (timm asks for it)."""
        return image_size[0] // self.patch_size[0], image_size[1] // self.patch_size[1]

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to tokens (B, T, embed_dim) in raster order."""
        return self.layers(images).flatten(2).transpose(1, 2)
