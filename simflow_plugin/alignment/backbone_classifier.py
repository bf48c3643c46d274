"""A published backbone of timm, fine-tuned here to classify a labelled data set at a size of its own choice."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from simflow_plugin.alignment.encoder_weights import find_weights, load_weights
from simflow_plugin.alignment.feature_layer import FeatureLayer, find_layer
from simflow_plugin.alignment.timm_encoders import network_on_meta
from simflow_plugin.convolution_layout import convolution_layout
from simflow_plugin.errors import ConfigError


class BackboneClassifier(nn.Module):
    """A timm network with a classifier of its own.

    Args:
        architecture: `model` is a name in timm, `img_size` the pixels at which it sees images, `num_classes` as given.
    Raises:
        ConfigError: if timm does not know the model, or it gives no features in a grid at that size.
    """

    trunk: Any

    def __init__(self, architecture: dict[str, Any]) -> None:
        import timm

        super().__init__()
        model, self.input_size = architecture["model"], int(architecture["img_size"])
        on_meta = network_on_meta(model)
        config: Any = on_meta.pretrained_cfg
        size: dict[str, Any] = {"img_size": self.input_size} if config.get("fixed_input_size") else {}
        on_meta = network_on_meta(model, **size) if size else on_meta
        self.layer: FeatureLayer = find_layer(on_meta, model, self.input_size, None)
        try:
            self.trunk = timm.create_model(
                model, pretrained=False, num_classes=architecture["num_classes"], **size
            )
        except (TypeError, AssertionError) as error:
            raise ConfigError(f"timm cannot build `{model}` as a classifier: {error}.") from error
        self._model, self._size = model, size
        self.num_features = int(self.trunk.num_features)
        self.mean, self.std = tuple(config["mean"]), tuple(config["std"])

    def load_published(self, weights: str | None) -> None:
        """Start from published weights, all but the classifier.

        Args:
            weights: their file; None for the local caches and packages.
        Raises:
            WeightsError: if they are missing or of another architecture.
        """
        import timm

        path = find_weights(self._model, weights)
        published = timm.create_model(self._model, pretrained=False, num_classes=0, **self._size)
        load_weights(published, path)
        self.trunk.load_state_dict(published.state_dict(), strict=False)  # the classifier alone is missing

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (B, 3, H, W) to logits (B, num_classes)."""
        return self.trunk(convolution_layout(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Map normalised images to the trunk's output."""
        return self.trunk.forward_features(convolution_layout(images))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Map the trunk's output to logits, or with `pre_logits` to pooled features: timm's method of the trunk."""
        return self.trunk.forward_head(features, pre_logits=pre_logits)

    def forward_intermediates(self, images: Tensor, **options: Any) -> Any:
        """Return the outputs of inner stages: timm's method of the trunk."""
        return self.trunk.forward_intermediates(images, **options)

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the grid in a transformer's output."""
        return int(getattr(self.trunk, "num_prefix_tokens", 0))
