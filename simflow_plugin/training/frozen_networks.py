"""Features and moments from frozen networks, computed or read from a disk cache.

The alignment's encoder gives features, a frozen autoencoder the moments of q(z given x).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from simflow_plugin.config.schema import RunConfig
from simflow_plugin.contracts import Autoencoder, ImageDataset
from simflow_plugin.data.disk_cache import cache_folder, tensors_digest
from simflow_plugin.data.feature_cache import CacheJob, FeatureCache, dataset_facts
from simflow_plugin.data.loader import Batch
from simflow_plugin.errors import ConfigError
from simflow_plugin.registry import Part
from simflow_plugin.runs.parts import Parts
from simflow_plugin.training.distributed.processes import Processes


class FrozenNetworks:
    """Outputs of a run's frozen networks for a batch, where it has any.

    Args:
        parts: of the run, the autoencoder on the training device.
        dataset: the training split.
        processes: of the run, which share the building of a cache.
    """

    def __init__(
        self,
        parts: Parts,
        config: RunConfig,
        dataset: ImageDataset,
        processes: Processes,
    ) -> None:
        self.encoder = parts.encoder
        self._features: FeatureCache | None = None
        self._moments: FeatureCache | None = None
        autoencoder = parts.joint.autoencoder
        if self.encoder is not None and config.alignment is not None:
            self.encoder.to(next(autoencoder.parameters()).device)
            if config.alignment.cache:
                self._features = build_feature_cache(self.encoder, config, dataset, processes)
        if config.training.cache_latents:
            self._moments = build_moment_cache(autoencoder, config, dataset, processes)

    @torch.no_grad()
    def features(self, batch: Batch, images: Tensor) -> Tensor | None:
        """Return the alignment's features (B, N, F) of `images`, the batch's on the training device, or None."""
        if self._features is not None:
            return _read(self._features, batch, images.device)
        return None if self.encoder is None else self.encoder.encode(images)  # type: ignore[operator]

    def moments(self, batch: Batch, device: torch.device) -> Tensor | None:
        """Return the cached moments (B, M, h, w) of a batch, or None where the encoder is asked each time."""
        return None if self._moments is None else _read(self._moments, batch, device)


def _read(cache: FeatureCache, batch: Batch, device: torch.device) -> Tensor:
    """Return cached values on the training device; from pinned memory the host need not wait for the copy."""
    values = cache.read(batch.indices, batch.flipped)
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)


def build_feature_cache(
    encoder: nn.Module, config: RunConfig, dataset: ImageDataset, processes: Processes
) -> FeatureCache:
    """Return the cache of the encoder's features of the training images, computing it if it is not there.

    Each process computes its share, and an interrupted one goes on. Kept in float16 under $SIMFLOW_DATA (or
    ~/.cache/simflow/data); mirrored images too where training mirrors. The key holds a digest of the encoder's weights
    and of the data's files: a path alone would give a retrained encoder, or another folder's file of that name, the
    features of the old one.
    """
    assert config.alignment is not None
    device = next(encoder.parameters()).device
    job = CacheJob(
        cache_folder() / "features",
        _facts(config, dataset, config.alignment.encoder, encoder),
        dataset,
        lambda images: encoder.encode(images.to(device)),  # type: ignore[operator]
        with_flips=config.training.horizontal_flip,
    )
    return _built(job, processes)


def build_moment_cache(
    autoencoder: Autoencoder, config: RunConfig, dataset: ImageDataset, processes: Processes
) -> FeatureCache:
    """Return the cache of a frozen encoder's moments of the training images, computing it if it is not there.

    Kept in float32, so that training sees what it would have computed; latents are drawn from them anew each step.
    Otherwise as `build_feature_cache`.

    Raises:
        ConfigError: if the autoencoder gives no moments.
    """
    device = next(autoencoder.parameters()).device
    job = CacheJob(
        cache_folder() / "moments",
        _facts(config, dataset, config.autoencoder, autoencoder),
        dataset,
        lambda images: autoencoder.moments(images.to(device)),
        with_flips=config.training.horizontal_flip,
        dtype="float32",
    )
    try:
        return _built(job, processes)
    except NotImplementedError as error:
        raise ConfigError(
            f"training.cache_latents: autoencoder `{config.autoencoder.name}`: {error}. Set it to false."
        ) from error


def _built(job: CacheJob, processes: Processes) -> FeatureCache:
    """Let every process compute its share; the main one puts the cache together, and the others open it."""
    if processes.num_processes > 1:
        processes.run_on_all(job.compute_share)
    return processes.main_first(job.finish)


def _facts(config: RunConfig, dataset: ImageDataset, part: Part, network: nn.Module) -> dict[str, Any]:
    """Return what the values of `network`, built as `part`, depend on."""
    data = dataset_facts(config.data.name, config.data.options, dataset, "train", config.image_size)
    weights = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return {
        **data,
        "encoder": part.name,
        "encoder_options": dict(part.options),
        "encoder_weights": tensors_digest(weights),
    }
