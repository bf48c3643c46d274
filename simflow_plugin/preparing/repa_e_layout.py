"""Latents in the layout that REPA-E's `train_ldm_only.py` reads, from the safetensors files of `latent_shards`.

    NAME.h5              data sets such as `00000/img-mean-std-00000012.npy`, (2 C, h, w): mean and standard deviation;
                         and `dataset.json`: {"labels": [[name, class], ...]}
    NAME_h5.json         a list of all names in it
    NAME-latents-stats.pt    latents_scale and latents_bias, (1, C, 1, 1): z is trained on as (z - bias) * scale

The names follow those of the images of the host's own layout, in whose order it pairs images and latents.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import torch
from safetensors import safe_open

from simflow_plugin.contracts import NO_LABEL, HasLabels, ImageDataset
from simflow_plugin.errors import DataError, RunDirectoryError
from simflow_plugin.files import replacing, write_text_atomically
from simflow_plugin.preparing.latent_shards import ChannelStatistics

IMAGES_PER_GROUP = 1000


def check_labels(dataset: ImageDataset) -> None:
    """Refuse images without labels before they are encoded.

    Raises:
        DataError: if an image is known to have no label, which the host needs.
    """
    is_missing = dataset.num_classes is None
    if not is_missing and isinstance(dataset, HasLabels):
        is_missing = bool((dataset.labels == NO_LABEL).any())
    if is_missing:
        raise DataError("layout repa-e: the host trains with labels, and these images have none.")


def write_repa_e(
    folder: Path, name: str, shards: Sequence[Path], statistics: ChannelStatistics
) -> list[Path]:
    """Write the host's three files.

    Args:
        folder: to write into.
        name: of the latents, the host's `--vae-latents-name`.
        shards: files of `write_latents`.
        statistics: of their latents.
    Returns:
        The files.
    Raises:
        DataError: if an image has no label, which the host needs.
    """
    labels: list[tuple[str, int]] = []
    archive, listing = folder / f"{name}.h5", folder / f"{name}_h5.json"
    with replacing(archive, RunDirectoryError) as part, h5py.File(part, "w") as file:
        for shard in shards:
            with safe_open(shard, framework="pt") as tensors:
                moments, classes = tensors.get_tensor("moments"), tensors.get_tensor("labels").tolist()
                indices = tensors.get_tensor("indices").tolist()
            if NO_LABEL in classes:
                raise DataError("layout repa-e: the host trains with labels, and these images have none.")
            mean, log_variance = moments.chunk(2, dim=1)
            rows = torch.cat([mean, (log_variance / 2).exp()], dim=1).numpy()
            for index, label, row in zip(indices, classes, rows, strict=True):
                key = f"{index // IMAGES_PER_GROUP:05d}/img-mean-std-{index:08d}.npy"
                file.create_dataset(key, data=row)
                labels.append((key, label))
        file.create_dataset("dataset.json", data=np.array(json.dumps({"labels": labels}).encode(), dtype="S"))
    write_text_atomically(listing, json.dumps([*(key for key, _ in labels), "dataset.json"], indent=2))
    scale = folder / f"{name}-latents-stats.pt"
    with replacing(scale, RunDirectoryError) as part:
        torch.save({"latents_scale": 1 / statistics.std, "latents_bias": statistics.mean}, part)
    return [archive, listing, scale]
