"""Features of many images, extracted by all processes, each its share, and resumed after an interruption.

A part of the features lies on disk (`simflow_plugin.data.shared_parts`) until they are used; those of real images
are then kept whole, for the next evaluation against the same images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from simflow_plugin.data.disk_cache import cache_folder, fingerprint, load_checked, save_checked
from simflow_plugin.data.shared_parts import DoneElsewhere, SharedParts
from simflow_plugin.errors import EvaluationError
from simflow_plugin.evaluation.extractors import Extractor, ImageFeatures
from simflow_plugin.progress_bar import count_progress

FEATURES_VERSION = 2
"""Of what an extractor returns; cached features of another version are not read."""

Images = Callable[[range], Iterable[Tensor]]
"""Numbers of images -> those of them that can be read, uint8 (B, 3, H, W)."""


class SharedFeatures:
    """Features of one set of images by one extractor.

    Args:
        name: of the images, for the progress.
        facts: what the images are.
        extractor: its name and the digest of its weights join the key.
        images: reads them.
        num_images: in all.
        folder: of the cache; None is `statistics` in the data cache.
        part_size: images a part.
        keeps: write the features of all images to the cache when they are read.
    """

    def __init__(
        self,
        name: str,
        facts: dict[str, Any],
        extractor: Extractor,
        images: Images,
        num_images: int,
        folder: Path | None = None,
        part_size: int = 1000,
        keeps: bool = True,
    ) -> None:
        version = {"extractor": extractor.name, "weights": extractor.digest, "features": FEATURES_VERSION}
        key = fingerprint({**facts, **version})
        self._file = (folder or cache_folder() / "statistics") / f"{extractor.suffix}_{key}.safetensors"
        self._name = name
        self._extractor, self._images, self._keeps = extractor, images, keeps
        folder_of_parts = self._file.with_suffix(".parts")
        self._parts = SharedParts(folder_of_parts, num_images, self._extract, part_size, self._is_kept)

    def make_missing(self, rank: int, world_size: int) -> None:
        """Extract what is missing of the share of one process among several."""
        if self._is_kept():
            return
        count = sum(map(len, self._parts.share(rank, world_size)))
        with count_progress(f"features of {self._name}", count) as advance:
            self._parts.make_missing(rank, world_size, advance)

    def read(self) -> ImageFeatures:
        """Return the features of all images that could be read, in order; extract what is missing.

        Raises:
            EvaluationError: if there is no image.
        """
        found = None
        while found is None:
            if self._is_kept() and (tensors := load_checked(self._file)) is not None:
                self._parts.remove()  # of a process that was stopped after the last of them
                return ImageFeatures(**tensors)
            self.make_missing(0, 1)
            with suppress(DoneElsewhere):  # another process kept them all meanwhile
                found = [ImageFeatures(**tensors) for tensors in self._parts.read() if tensors]
        if not found:
            raise EvaluationError(f"{self._extractor.name}: there are no images to extract features of.")
        features = ImageFeatures.concatenate(found)
        if self._keeps:
            save_checked(self._file, tensors_of(features))
        self._parts.remove()
        return features

    def _is_kept(self) -> bool:
        return self._keeps and self._file.is_file()

    def _extract(self, numbers: range) -> dict[str, Tensor]:
        found = [self._extractor(images) for images in self._images(numbers)]
        return tensors_of(ImageFeatures.concatenate(found)) if found else {}


def tensors_of(features: ImageFeatures) -> dict[str, Tensor]:
    """Return what an extractor gave, by name."""
    return {name: part for name, part in features._asdict().items() if part is not None}
