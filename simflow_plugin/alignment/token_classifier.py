"""A small vision transformer that classifies, from scratch: a convolutional stem and a head on all tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from simflow_plugin.alignment.feature_layer import FeatureLayer
from simflow_plugin.alignment.timm_names import check_timm_name
from simflow_plugin.errors import ConfigError


class TokenClassifier(nn.Module):
    """A timm vision transformer with a convolutional stem and a linear head on all of its tokens.

    The head sees where a token is. With a mean over the tokens before it a transformer must first learn positions, and
    in the first few hundred steps on Fashion-MNIST it stayed behind a linear model of the pixels.

    Args:
        architecture: `model` is a name in timm; the rest are arguments that override its sizes.
    Raises:
        ConfigError: if timm does not know the model or its arguments.
    """

    num_prefix_tokens = 0
    trunk: Any

    def __init__(self, architecture: dict[str, Any]) -> None:
        import timm

        super().__init__()
        other = ("kind", "model", "num_classes")
        sizes = {name: value for name, value in architecture.items() if name not in other}
        fixed: dict[str, Any] = {"global_pool": "", "class_token": False, "embed_layer": ConvStem}
        check_timm_name(architecture["model"], "model of the classifier")
        try:
            # Named here: the description comes from a file, which must not have weights fetched or another file read.
            trunk: Any = timm.create_model(
                architecture["model"], pretrained=False, checkpoint_path=None, num_classes=0, **fixed, **sizes
            )
        except (RuntimeError, TypeError, AssertionError) as error:
            raise ConfigError(
                f"timm cannot build `{architecture['model']}` as a vision transformer with {sizes}: {error}. See "
                "timm.list_models('vit*')."
            ) from error
        self.trunk = trunk
        self.num_features = int(trunk.num_features)
        self.head = nn.Linear(trunk.patch_embed.num_patches * self.num_features, architecture["num_classes"])
        self.layer = FeatureLayer(None, trunk.patch_embed.grid_size, self.num_features)

    def forward_features(self, images: Tensor) -> Tensor:
        """Map normalised images (B, 3, H, W) to patch features (B, N, F) in raster order."""
        return self.trunk.forward_features(images)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (B, 3, H, W) to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(images))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Map patch features (B, N, F) to logits, or with `pre_logits` to their mean (B, F), as timm's method does."""
        return features.mean(dim=1) if pre_logits else self.head(features.flatten(1))

    def forward_intermediates(self, images: Tensor, **options: Any) -> Any:
        """Return the outputs of inner blocks: timm's method of the trunk."""
        return self.trunk.forward_intermediates(images, **options)


class ConvStem(nn.Module):
    """Drop-in for timm's `PatchEmbed`: log2(patch_size) convolutions of stride 2, then one of 1 x 1.

    Small transformers train faster with it than with one projection of each patch.

    Args:
        img_size, patch_size: in pixels; `patch_size` a power of two.
        in_chans, embed_dim: channels of images and tokens.
    Raises:
        ConfigError: if `patch_size` is not a power of two, at least 2.
    Reference:
        Early convolutions help transformers see better, arXiv:2106.14881.
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
