"""One array per image, computed once, kept on disk: alignment features, moments of a frozen encoder.

    folder/<key>/values.npy     (views, N, ...), memory-mapped; view 0 as it is, view 1 mirrored
    folder/<key>/checksums.npy  (views, blocks), of the values; see `simflow_plugin.data.block_checksums`
    folder/<key>/cache.json     the facts that the values depend on

The key is a hash of the facts: data set and its files, split, image size, encoder and its weights, ... The folder
gets its name when it is complete.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simflow_plugin.contracts import DescribesContent, HasLabels, ImageDataset
from simflow_plugin.data.block_checksums import BlockChecksums, all_checksums
from simflow_plugin.data.disk_cache import fingerprint, tensors_digest
from simflow_plugin.data.loader import evaluation_batches
from simflow_plugin.errors import DataError
from simflow_plugin.files import read_json_object, replacing

VALUES, CHECKSUMS, FACTS = "values.npy", "checksums.npy", "cache.json"
NUM_PROBED = 64
"""Images read of a data set that does not say what it holds."""


@dataclass(frozen=True)
class FeatureCache:
    """Cached values, read by the index of the image.

    Args:
        values: (1 or 2, N, ...), float16 or float32, memory-mapped; NaN where an image could not be read.
        place: folder, for messages.
        checksums: of the values; every block is checked when a row of it is first read.
    """

    values: np.ndarray
    place: Path
    checksums: BlockChecksums

    def __len__(self) -> int:
        return self.values.shape[1]

    def read(self, indices: Tensor, flipped: Tensor | None = None) -> Tensor:
        """Return float32 values (B, ...) of the images `indices` (B,), mirrored where `flipped` (B,) says so.

        Raises:
            DataError: if mirrored values are asked for and were not cached, an image could not be read then, or values
                do not match their checksum.
        """
        views = torch.zeros_like(indices) if flipped is None else flipped.to(torch.int64)
        if int(views.max()) >= self.values.shape[0]:
            raise DataError(
                "the cache holds no values of mirrored images. Build it with flips, or train without."
            )
        self.checksums.check(views.numpy(), indices.numpy())
        values = torch.from_numpy(self.values[views.numpy(), indices.numpy()].astype(np.float32))
        absent = values.flatten(1).isnan().any(1)
        if bool(absent.any()):
            raise DataError(
                f"{self.place}: no values of image {int(indices[absent][0])}, which could not be read when the cache "
                "was built. Delete the folder; it will be built again."
            )
        return values


def dataset_facts(
    name: str, options: Mapping[str, Any], dataset: ImageDataset, split: str, size: int
) -> dict[str, Any]:
    """Return what cached values depend on, as far as the data set goes.

    A data set tells by `content_facts()` which images it holds: resolved paths, names, sizes and times of files,
    or the pixels themselves. Of one without, labels and a few evenly spaced images stand for all.
    """
    return {
        "data": name,
        "options": dict(options),
        "split": split,
        "size": size,
        "num": len(dataset),
        "content": dataset.content_facts() if isinstance(dataset, DescribesContent) else _probe(dataset),
    }


def _probe(dataset: ImageDataset) -> dict[str, Any]:
    labels = dataset.labels if isinstance(dataset, HasLabels) else None
    step = max(1, len(dataset) // NUM_PROBED)
    images = {
        f"{batch.offset}": batch.images
        for batch in evaluation_batches(dataset, 1, range(0, len(dataset), step))
    }
    return {
        "labels": fingerprint({"labels": labels.tolist()}) if isinstance(labels, Tensor) else None,
        "some_images": tensors_digest(images),
    }


def open_cache(folder: Path, facts: Mapping[str, Any]) -> FeatureCache | None:
    """Return the cache for `facts`, or None if it was not built yet.

    Raises:
        DataError: if there is one that does not hold what its name says.
    """
    place = folder / fingerprint(facts)
    if not place.is_dir():
        return None
    try:
        stored = read_json_object(place / FACTS, DataError)
        values = np.load(place / VALUES, mmap_mode="r", allow_pickle=False)
        checksums = np.load(place / CHECKSUMS, allow_pickle=False)
    except (OSError, ValueError, DataError) as error:
        raise DataError(
            f"{place}: a damaged cache: {error}. Delete the folder; it will be built again."
        ) from error
    expected = json.loads(json.dumps(dict(facts), default=str))
    differing = sorted(key for key in {*stored, *expected} if stored.get(key) != expected.get(key))
    if differing:
        raise DataError(
            f"{place / FACTS}: made for other {', '.join(differing)}. Delete the folder; it will be built "
            "again."
        )
    if values.shape[1] != expected.get("num", values.shape[1]):
        raise DataError(
            f"{place / VALUES}: {values.shape[1]} rows, expected {expected['num']}. Delete the folder."
        )
    return FeatureCache(values, place, BlockChecksums(values, checksums, place))


def build_cache(
    folder: Path,
    facts: Mapping[str, Any],
    dataset: ImageDataset,
    compute: Callable[[Tensor], Tensor],
    batch_size: int = 64,
    with_flips: bool = False,
    dtype: str = "float16",
) -> FeatureCache:
    """Return the cache for `facts`, computing it first if need be.

    Args:
        folder: of all caches.
        facts: what the values depend on; see `dataset_facts`.
        dataset: every image of it is computed once; a corrupt one keeps NaN, and training never asks for
            it.
        compute: images (B, 3, H, W) in [-1, 1] -> (B, ...).
        batch_size: images at a time.
        with_flips: also compute the mirrored images.
        dtype: 'float16' or 'float32', on disk.
    Raises:
        DataError: if the disk is full, or the cache that is there is damaged.
    """
    facts = {**facts, "num": len(dataset), "views": 1 + with_flips, "dtype": dtype}
    known = open_cache(folder, facts)
    if known is not None:
        return known
    place = folder / fingerprint(facts)
    try:
        with replacing(place) as part:
            part.mkdir()
            _compute_all(part / VALUES, dataset, compute, batch_size, 1 + with_flips, dtype)
            written = np.load(part / VALUES, mmap_mode="r", allow_pickle=False)
            np.save(part / CHECKSUMS, all_checksums(written))
            (part / FACTS).write_text(json.dumps(facts, default=str, indent=1))
    except OSError as error:
        if not place.is_dir():  # another process may have been faster
            raise DataError(f"{place}: the cache cannot be written: {error}") from error
    built = open_cache(folder, facts)
    assert built is not None
    return built


@torch.no_grad()
def _compute_all(
    path: Path,
    dataset: ImageDataset,
    compute: Callable[[Tensor], Tensor],
    batch_size: int,
    num_views: int,
    dtype: str,
) -> None:
    values = None
    for batch in evaluation_batches(dataset, batch_size):
        for view in range(num_views):
            result = compute(batch.images.flip(-1) if view else batch.images).float().cpu().numpy()
            if values is None:
                shape = (num_views, len(dataset), *result.shape[1:])
                values = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
                values[:] = np.nan
            values[view, batch.indices.numpy()] = result
    assert values is not None
    values.flush()
