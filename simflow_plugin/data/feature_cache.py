"""One array per image, computed once, kept on disk: alignment features, moments of a frozen encoder.

    folder/<key>/values.npy     (views, N, ...), memory-mapped; view 0 as it is, view 1 mirrored
    folder/<key>/checksums.npy  (views, N) uint32, CRC-32 of each row of values
    folder/<key>/cache.json     the facts that the values depend on

The key is a hash of the facts: data set and its files, split, image size, encoder and its weights, ... The folder
gets its name when it is complete. Until then `folder/<key>.parts` holds what any process has computed (`SharedParts`);
while one puts them together, the values are on the disk twice.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from simflow_plugin.contracts import DescribesContent, HasLabels, ImageDataset
from simflow_plugin.data.disk_cache import fingerprint, tensors_digest
from simflow_plugin.data.loader import check_corrupt, evaluation_batches
from simflow_plugin.data.shared_parts import DoneElsewhere, SharedParts
from simflow_plugin.errors import DataError
from simflow_plugin.files import read_json_object, replacing

VALUES, CHECKSUMS, FACTS = "values.npy", "checksums.npy", "cache.json"
FORMAT = 2
"""Of the files, and a part of the key: caches of another format are built anew."""
NUM_PROBED = 64
"""Images read of a data set that does not describe its content."""


@dataclass(frozen=True)
class FeatureCache:
    """Cached values, read by the index of the image.

    Features of a million images are too large to be read for a check when they are opened, and a flipped bit in one
    would train on for weeks: a row is checked when it is first read.

    Args:
        values: (1 or 2, N, ...), float16 or float32, memory-mapped; NaN where an image could not be read.
        checksums: (1 or 2, N) uint32, CRC-32 of each row.
        place: folder, for messages.
    """

    values: np.ndarray
    checksums: np.ndarray
    place: Path

    def __len__(self) -> int:
        return self.values.shape[1]

    @cached_property
    def _is_checked(self) -> np.ndarray:
        return np.zeros(self.checksums.shape, dtype=bool)

    def read(self, indices: Tensor, flipped: Tensor | None = None) -> Tensor:
        """Return float32 values (B, ...) of the images `indices` (B,), mirrored where `flipped` (B,) is true.

        Raises:
            DataError: if mirrored values are asked for and were not cached, an image could not be read then, or values
                do not match their checksum.
        """
        views = (torch.zeros_like(indices) if flipped is None else flipped.to(torch.int64)).numpy()
        if views.max() >= self.values.shape[0]:
            raise DataError(
                "the cache holds no values of mirrored images. Build it with flips, or train without."
            )
        rows = indices.numpy()
        stored = self.values[views, rows]
        for place in np.flatnonzero(~self._is_checked[views, rows]):
            view, row = views[place], rows[place]
            if zlib.crc32(stored[place].tobytes()) != self.checksums[view, row]:
                raise DataError(
                    f"{self.place}: the values of image {row} are not what was written: they do not match their "
                    "checksum. Is the disk failing? Delete the folder; it will be built again."
                )
            self._is_checked[view, row] = True
        values = torch.from_numpy(stored.astype(np.float32))
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

    `content_facts()` of a data set identifies its images: resolved paths, names, sizes and times of files, or a digest
    of the pixels. Of one without, labels and a few evenly spaced images stand for all.
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


@dataclass(frozen=True)
class CacheJob:
    """A cache that may have to be built: by one process, `finish`, or by several, each `compute_share` before it.

    Args:
        folder: of all caches.
        facts: what the values depend on; see `dataset_facts`.
        dataset: every image of it is computed once; a corrupt one keeps NaN, and training never asks for
            it.
        compute: images (B, 3, H, W) in [-1, 1] -> (B, ...).
        batch_size: images at a time.
        with_flips: also compute the mirrored images.
        dtype: 'float16' or 'float32', on disk.
    """

    folder: Path
    facts: Mapping[str, Any]
    dataset: ImageDataset
    compute: Callable[[Tensor], Tensor]
    batch_size: int = 64
    with_flips: bool = False
    dtype: Literal["float16", "float32"] = "float16"

    def __post_init__(self) -> None:
        views = {
            "format": FORMAT,
            "num": len(self.dataset),
            "views": 1 + self.with_flips,
            "dtype": self.dtype,
        }
        object.__setattr__(self, "facts", {**self.facts, **views})

    @property
    def place(self) -> Path:
        return self.folder / fingerprint(self.facts)

    @cached_property
    def parts(self) -> SharedParts:
        return SharedParts(
            self.place.with_suffix(".parts"),
            len(self.dataset),
            self._compute,
            16 * self.batch_size,
            self.place.is_dir,
        )

    def open(self) -> FeatureCache | None:
        """Return the cache, or None if it was not built yet.

        Raises:
            DataError: if there is one that does not hold what its name promises.
        """
        if not self.place.is_dir():
            return None
        again = "Delete the folder; it will be built again."
        try:
            stored = read_json_object(self.place / FACTS, DataError)
            values = np.load(self.place / VALUES, mmap_mode="r", allow_pickle=False)
            checksums = np.load(self.place / CHECKSUMS, allow_pickle=False)
        except (OSError, EOFError, ValueError, DataError) as error:
            raise DataError(f"{self.place}: a damaged cache: {error}. {again}") from error
        expected = json.loads(json.dumps(self.facts, default=str))
        differing = sorted(key for key in {*stored, *expected} if stored.get(key) != expected.get(key))
        if differing:
            raise DataError(f"{self.place / FACTS}: made for other {', '.join(differing)}. {again}")
        rows = (expected["views"], expected["num"])
        if not values.shape[:2] == checksums.shape == rows:
            raise DataError(
                f"{self.place}: values {values.shape} and checksums {checksums.shape} of {rows} rows. {again}"
            )
        return FeatureCache(values, checksums, self.place)

    def compute_share(self, rank: int, world_size: int) -> None:
        """Compute what is missing of the share of one process among several.

        Raises:
            DataError: if the disk is full, or the cache that is there is damaged.
        """
        if self.open() is None:
            self.parts.make_missing(rank, world_size)

    def finish(self) -> FeatureCache:
        """Return the cache; compute what is still missing, and put the parts together, where it is not there.

        Raises:
            DataError: if the disk is full, the cache that is there is damaged, or more images than the data set allows
                could not be read, by all processes together.
        """
        known = self.open()
        if known is not None:
            self.parts.remove()  # of a process that was stopped after the last of them
            return known
        try:
            with replacing(self.place) as part:
                part.mkdir()
                values = self._put_together(part / VALUES)
                checksums = [[zlib.crc32(row.tobytes()) for row in view] for view in values]
                np.save(part / CHECKSUMS, np.array(checksums, dtype=np.uint32))
                (part / FACTS).write_text(json.dumps(self.facts, default=str, indent=1))
        except DoneElsewhere:
            pass  # it is opened below
        except OSError as error:
            if not self.place.is_dir():  # another process may have been faster
                raise DataError(f"{self.place}: the cache cannot be written: {error}") from error
        self.parts.remove()
        built = self.open()
        assert built is not None
        return built

    @cached_property
    def _corrupt(self) -> set[int]:
        return set()

    @torch.no_grad()
    def _compute(self, items: range) -> dict[str, Tensor]:
        indices, values = [], []
        for batch in evaluation_batches(self.dataset, self.batch_size, items, self._corrupt):
            views = [batch.images, *([batch.images.flip(-1)] if self.with_flips else [])]
            indices.append(batch.indices)
            values.append(torch.stack([self.compute(view).float().cpu() for view in views]))
        if not indices:
            return {}
        found = torch.cat(values, dim=1).to(getattr(torch, self.dtype))
        return {"indices": torch.cat(indices), "values": found}

    def _put_together(self, path: Path) -> np.ndarray:
        values, num_read = None, 0
        for part in self.parts.read():
            if not part:
                continue
            if values is None:
                shape = (1 + self.with_flips, len(self.dataset), *part["values"].shape[2:])
                values = np.lib.format.open_memmap(path, mode="w+", dtype=self.dtype, shape=shape)
                values[:] = np.nan
            values[:, part["indices"].numpy()] = part["values"].numpy()
            num_read += len(part["indices"])
        check_corrupt(self.dataset, len(self.dataset) - num_read)
        assert values is not None, "a data set none of whose images can be read is refused before"
        values.flush()
        return values
