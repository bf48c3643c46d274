"""Where the alignment's features come from: the frozen encoder each time, or a disk cache of what it said once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from simflow_plugin.config import RunConfig
from simflow_plugin.contracts import ImageDataset
from simflow_plugin.data.cache import cache_folder, tensors_digest
from simflow_plugin.data.feature_cache import FeatureCache, build_cache, dataset_facts
from simflow_plugin.data.loader import Batch


class AlignmentFeatures:
    """Features (B, N, F) of the images of a batch.

    Args:
        encoder: frozen, with `encode(images)`.
        cache: of all training images, by index; None computes them each time.
    """

    def __init__(self, encoder: nn.Module, cache: FeatureCache | None) -> None:
        self.encoder = encoder
        self._cache = cache

    @torch.no_grad()
    def __call__(self, batch: Batch, images: Tensor) -> Tensor:
        """Return the features of `images`, the batch's images on the training device."""
        if self._cache is None:
            return self.encoder.encode(images)  # type: ignore[operator]
        return self._cache.read(batch.indices, batch.flipped).to(images.device, non_blocking=True)


def build_feature_cache(encoder: nn.Module, config: RunConfig, dataset: ImageDataset) -> FeatureCache:
    """Return the cache of the encoder's features of the training images, computing it if it is not there.

    Kept in float16 under $SIMFLOW_DATA (or ~/.cache/simflow/data); mirrored images too where training mirrors. The
    key holds a digest of the encoder's weights and of the data's files: a path alone would give a retrained encoder,
    or another folder's file of that name, the features of the old one.
    """
    assert config.alignment is not None
    part = config.alignment.encoder
    data = dataset_facts(config.data.name, config.data.options, dataset, "train", config.image_size)
    facts = {**data, "encoder": part.name, "encoder_options": dict(part.options)}
    facts["encoder_weights"] = tensors_digest(
        {**dict(encoder.named_parameters()), **dict(encoder.named_buffers())}
    )
    device = next(encoder.parameters()).device
    return build_cache(
        cache_folder() / "features",
        facts,
        dataset,
        lambda images: encoder.encode(images.to(device)),  # type: ignore[operator]
        with_flips=config.training.horizontal_flip,
    )
