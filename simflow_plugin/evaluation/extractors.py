"""Feature extractors of the generation metrics, all registered with torch-fidelity and all with weights from a file.

`inception` is torch-fidelity's port of the TensorFlow network that FID is defined on. `dinov2-s/b/l/g`,
`timm:MODEL` and `pretrained` (a file that `simflow pretrain-encoder` made) span other feature spaces: a
Fréchet distance there is called `fd_<extractor>`, never FID.

`timm:MODEL@96` shows a network the images at 96 pixels. The size is part of the name, since it is part of what is
measured: features at another size are other features.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

from simflow_plugin.alignment.classifier import load_classifier
from simflow_plugin.alignment.encoder_weights import find_weights, load_weights, published_at
from simflow_plugin.alignment.timm_names import check_timm_name
from simflow_plugin.convolution_layout import convolution_layout
from simflow_plugin.errors import EvaluationError, WeightsError
from simflow_plugin.evaluation.result import suffix_of
from simflow_plugin.files import file_digest
from simflow_plugin.options import did_you_mean
from simflow_plugin.published_weights import fetch_command, torch_cache
from simflow_plugin.weights import listed, not_finite, read_tensors

TIMM_BY_NAME = {
    "dinov2-s": "vit_small_patch14_dinov2.lvd142m",
    "dinov2-b": "vit_base_patch14_dinov2.lvd142m",
    "dinov2-l": "vit_large_patch14_dinov2.lvd142m",
    "dinov2-g": "vit_giant_patch14_dinov2.lvd142m",
}
DINOV2_SIZE = 224
"""Pixels at which DINOv2 sees an image here, as in the published distances; its weights are for 518."""
SPATIAL_CHANNELS = 7
"""sFID takes the first channels of one convolution at 17 x 17, as the ADM evaluation suite does."""


class ImageFeatures(NamedTuple):
    """Features of N images, float32, on the CPU.

    `pooled` (N, F); `logits` (N, K) of a classifier, or None; `spatial` (N, 2023), Inception's for sFID, or None.
    """

    pooled: Tensor
    logits: Tensor | None = None
    spatial: Tensor | None = None

    @classmethod
    def concatenate(cls, parts: Sequence[ImageFeatures]) -> ImageFeatures:
        """Return the features of all images, in order."""
        columns = zip(*parts, strict=True)
        return cls(*(torch.cat(part) if part[0] is not None else None for part in columns))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Extractor:
    """A loaded extractor.

    Args:
        name: as the user named it.
        digest: of the file of the weights.
        network: torch-fidelity's interface: uint8 images -> a tuple of features.
    """

    name: str
    digest: str
    network: FeatureExtractorBase

    @property
    def is_inception(self) -> bool:
        return self.name == "inception"

    @property
    def suffix(self) -> str:
        """Return the name as it stands in the names of metrics."""
        return suffix_of(self.name)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> ImageFeatures:
        """Return the features of uint8 images (B, 3, H, W)."""
        device = next(self.network.parameters()).device
        spatial: list[Tensor] = []
        with ExitStack() as hooks:
            if self.is_inception:
                # `mixed_6/conv` of the TensorFlow graph names the last operation of that branch, its ReLU.
                layer = self.network.Mixed_6d.branch1x1
                hooks.enter_context(layer.register_forward_hook(lambda _, __, out: spatial.append(out)))
            pooled, logits = (*self.network(images.to(device)), None)[:2]
        rows = spatial[0][:, :SPATIAL_CHANNELS].flatten(1).float().cpu() if spatial else None
        return ImageFeatures(pooled.float().cpu(), logits.float().cpu() if logits is not None else None, rows)


class PooledFeatures(FeatureExtractorBase):
    """A timm network before its classifier: the class token or average that timm pools for it.

    Images are resized to the network's input by antialiased bicubic interpolation. torch-fidelity builds extractors by
    (name, features, options of its own), of which only the path of the weights matters here.
    """

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: str | None = None, **_: Any
    ) -> None:
        super().__init__(name, features_list)
        network, self.input_size, mean, std = self.load(name, Path(feature_extractor_weights_path or ""))
        self.network = network.requires_grad_(False).eval()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    @staticmethod
    def load(name: str, path: Path) -> tuple[nn.Module, int, tuple[float, ...], tuple[float, ...]]:
        """Return the network, its input size in pixels, and its normalisation for pixels in [0, 1]."""
        import timm

        facts = extractor_facts(name.removeprefix("simflow-"))
        model, size = facts.model, facts.size
        config = timm.get_pretrained_cfg(model)
        is_fixed = size is not None and (config is None or config.fixed_input_size)
        arguments: dict[str, Any] = {"img_size": size} if is_fixed else {}
        network = timm.create_model(model, pretrained=False, **arguments)
        load_weights(network, path)
        settings = timm.data.resolve_model_data_config(network)
        return network, size or settings["input_size"][-1], settings["mean"], settings["std"]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        pixels = images.float() / 255
        if pixels.shape[-2:] != (self.input_size, self.input_size):
            size = (self.input_size, self.input_size)
            pixels = F.interpolate(pixels, size, mode="bicubic", align_corners=False, antialias=True)
        normalized = convolution_layout((pixels - self.mean) / self.std)
        hidden = self.network.forward_features(normalized)  # type: ignore[operator]
        pooled = self.network.forward_head(hidden, pre_logits=True)  # type: ignore[operator]
        found = {"pooled": pooled}
        if "logits" in self.features_list:
            found["logits"] = self.network.forward_head(hidden)  # type: ignore[operator]
        return tuple(found[feature] for feature in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("pooled", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "pooled"

    @staticmethod
    def can_be_compiled() -> bool:
        return False


class PretrainedFeatures(PooledFeatures):
    """The classifier in a file that `simflow pretrain-encoder` made."""

    @staticmethod
    def load(name: str, path: Path) -> tuple[nn.Module, int, tuple[float, ...], tuple[float, ...]]:
        network, card = load_classifier(path)
        return network, int(card.architecture["img_size"]), card.mean, card.std


@dataclass(frozen=True)
class ExtractorFacts:
    """Facts that an extractor's name stands for.

    Args:
        registered: its name with torch-fidelity.
        part: class that is registered under it.
        features: of an image to ask it for: pooled ones, then logits, if it has them.
        origin: sentences that say where its weights come from.
        model: timm's name of the network; empty for those that are not timm's.
        size: pixels at which it sees the images; None: those that come with its weights.
        file_name: of its weights in torch's cache.
    """

    registered: str
    part: type[FeatureExtractorBase]
    features: tuple[str, ...]
    origin: str
    model: str = ""
    size: int | None = None
    file_name: str | None = None


FACTS_BY_NAME = {
    "inception": ExtractorFacts(
        "inception-v3-compat",
        FeatureExtractorInceptionV3,
        ("2048", "logits_unbiased"),
        f"Published at {URL_INCEPTION_V3}. Or use another: --extractor none, pretrained, timm:MODEL.",
        file_name=Path(URL_INCEPTION_V3).name,
    ),
    "pretrained": ExtractorFacts(
        "simflow-pretrained",
        PretrainedFeatures,
        ("pooled", "logits"),
        "Make it with `simflow pretrain-encoder`.",
    ),
}


def extractor_facts(name: str) -> ExtractorFacts:
    """Return the facts of an extractor; see `build_extractor`.

    Raises:
        EvaluationError: for an unknown name, or if what follows the `@` is not a size that it can have.
    """
    plain, separator, size = name.partition("@")
    if separator and not (size.isdecimal() and int(size) > 0):
        raise EvaluationError(f"--extractor {name}: `{size}` is not a size in pixels. Write timm:MODEL@96.")
    if separator and plain in FACTS_BY_NAME:
        raise EvaluationError(
            f"--extractor {name}: `{plain}` sees images at its own size. Leave `@{size}` out."
        )
    if plain in FACTS_BY_NAME:
        return FACTS_BY_NAME[plain]
    model = TIMM_BY_NAME.get(plain, plain.removeprefix("timm:"))
    if plain.startswith("timm:"):
        check_timm_name(model, f"--extractor {name}", EvaluationError)
    elif plain not in TIMM_BY_NAME:
        known = [*FACTS_BY_NAME, "timm:MODEL", "timm:MODEL@SIZE", *TIMM_BY_NAME]
        raise EvaluationError(f"--extractor: unknown `{name}`.{did_you_mean(name, known)}")
    pixels = int(size) if separator else DINOV2_SIZE if "dinov2" in model else None
    return ExtractorFacts(f"simflow-{name}", PooledFeatures, ("pooled",), published_at(model), model, pixels)


def build_extractor(name: str, weights: Path | None, device: torch.device | str = "cpu") -> Extractor:
    """Load an extractor and register it with torch-fidelity.

    Args:
        name: `inception`, `dinov2-s/b/l/g` or `timm:MODEL`, these two with `@SIZE` in pixels or without, or
            `pretrained`.
        weights: file; None looks into the local caches, and never downloads.
    Raises:
        EvaluationError: for an unknown name.
        WeightsError: if the file is missing (naming it, the option and the address) or holds something else.
    """
    path = find_extractor_weights(name, weights)
    facts = extractor_facts(name)
    if facts.registered not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(facts.registered, facts.part)
    if facts.part is FeatureExtractorInceptionV3:
        # torch-fidelity itself would unpickle whatever the file holds, and compute with NaN.
        broken = not_finite(read_tensors(path))
        if broken:
            raise WeightsError(f"{path}: {len(broken)} tensors are not finite: {listed(broken)}")
    try:
        network = facts.part(facts.registered, [*facts.features], feature_extractor_weights_path=str(path))
    except (RuntimeError, AttributeError, TypeError, AssertionError) as error:
        detail = str(error).splitlines()[0]
        raise WeightsError(
            f"{path}: not the weights of the extractor `{name}`: {detail} Name the right file with --weights. "
            f"{facts.origin}"
        ) from error
    return Extractor(name, file_digest(path)[:16], network.eval().to(device))


def find_extractor_weights(name: str, weights: Path | None) -> Path:
    """Return the file of an extractor's weights; see `build_extractor`."""
    facts = extractor_facts(name)
    if facts.model:
        return find_weights(facts.model, str(weights) if weights is not None else None, "--weights")
    if weights is None and facts.file_name is None:
        raise WeightsError(f"extractor `{name}`: name its file with --weights. {facts.origin}")
    path = weights.expanduser() if weights is not None else torch_cache() / str(facts.file_name)
    if path.is_file():
        return path
    raise WeightsError(
        f"{path}: no such file (--weights of the extractor `{name}`).{fetch_command(path.name)} {facts.origin}"
    )
