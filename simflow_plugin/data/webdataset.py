"""WebDataset shards as a map-style data set: tar files of samples, read at random by an index of offsets.

Shards that are streamed cannot resume where they were; with an index, any image is one seek away, so that the order is
that of every other data set and resumes bit for bit. What a sample is: `simflow_plugin.data.tar_index`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simflow_plugin import registry
from simflow_plugin.contracts import NO_LABEL, DataContext
from simflow_plugin.data.decoding import CorruptImage
from simflow_plugin.data.disk_cache import cache_folder, file_facts, fingerprint
from simflow_plugin.data.image_files import FileDataset, ListedImages, PackedStrings
from simflow_plugin.data.labels import Key
from simflow_plugin.data.options import WebDatasetOptions
from simflow_plugin.data.tar_index import ShardIndex, cached_index, raw_labels
from simflow_plugin.data.tar_shards import local_shards
from simflow_plugin.errors import DataError
from simflow_plugin.files import read_json_object

MIXED = (
    "the classes {} cannot be compared: some are numbers, others have names, by the `dataset.json` of `simflow "
    "prepare`. Put that file beside the shards that lack it, or set data.labels: false."
)


@registry.DATASETS.register("webdataset")
class WebDataset(FileDataset):
    """Images in tar shards, local or fetched to a cache first.

    Raises:
        DataError: if a shard is missing, compressed, cut off or without images, a sample has two images, a label
            cannot be read, or labels are asked for that are not there.
    """

    Options = WebDatasetOptions

    def __init__(self, options: WebDatasetOptions, context: DataContext) -> None:
        cache = Path(options.cache).expanduser() if options.cache else cache_folder() / "webdataset"
        test = options.test_shards if context.split == "test" else None
        training_shards, training_indices = _index_all(options.shards, cache, options, context)
        self.shards, indices = training_shards, training_indices
        if test is not None:
            self.shards, indices = _index_all(test, cache, options, context)
            _refuse_common_shards(training_shards, self.shards)
        more = len(self.shards) - 1
        where = f"{self.shards[0]} and {more} more shards" if more else self.shards[0]
        found = training = declared = None
        if options.labels is not False:
            training, declared = found, tested = named_labels(self.shards, indices)
            if test is not None:
                training, declared = named_labels(training_shards, training_indices)
            if (tested is None) != (declared is None) and has_numbers(found if tested is None else training):
                raise DataError(f"{where}: {MIXED.format('of data.shards and data.test_shards')}")
        keys = [key for index in indices for key in index.keys]
        ignored = sum((Counter(index.ignored) for index in indices), Counter())
        is_split = options.test_shards is not None
        super().__init__(
            ListedImages(where, keys, found, training, is_split, declared, ignored), options, context
        )
        self._shard = np.repeat(np.arange(len(indices)), [len(index.keys) for index in indices])[self.rows]
        self._offset = np.concatenate([index.offsets for index in indices])[self.rows]
        self._size = np.concatenate([index.sizes for index in indices])[self.rows]

    def read_content(self, index: int) -> bytes:
        size = int(self._size[index])
        try:
            with open(self.shards[self._shard[index]], "rb") as file:
                file.seek(int(self._offset[index]))
                content = file.read(size)
        except OSError as error:
            raise CorruptImage(f"{self.describe(index)}: {error}") from error
        return content

    def content_facts(self) -> dict[str, Any]:
        shards = [(str(Path(shard).resolve()), *file_facts(Path(shard))) for shard in self.shards]
        return super().content_facts() | {"shards": fingerprint({"shards": shards})}

    def describe(self, index: int) -> str:
        return f"{self.shards[self._shard[index]]}:{self.names[index]}"


CARD = "dataset.json"
"""Beside the shards of `simflow prepare`: counts, digests and `classes`, the names by number."""


def classes_of_card(folder: Path) -> list[Key] | None:
    """Return the names of the classes of shards that `simflow prepare` wrote; None for other shards.

    Raises:
        DataError: if the card is damaged.
    """
    if not (folder / CARD).is_file():
        return None
    card = read_json_object(folder / CARD, DataError)
    if card.get("written_by") != "simflow prepare" or card.get("classes") is None:
        return None
    return [str(name) for name in card["classes"]]


def named_labels(
    shards: Sequence[str], indices: Sequence[ShardIndex]
) -> tuple[list[Key] | None, list[Key] | None]:
    """Return the label of every image, by name where the card beside its shard has one, and the order of the names.

    Shards of `simflow prepare` number their classes, and name them in the card beside them: number 0 of one folder may
    be another class than number 0 of the next.

    Returns:
        labels, as of `raw_labels`; names of the classes in the card's order, None for shards without a card.
    Raises:
        DataError: if cards have different classes, or numbers stand beside names.
    """
    labels = raw_labels(list(indices))
    folders = [Path(shard).parent for shard in shards]
    classes_by_folder = {folder: classes_of_card(folder) for folder in dict.fromkeys(folders)}
    declared = next((classes for classes in classes_by_folder.values() if classes), None)
    if labels is None or declared is None:
        return labels, None
    found: list[Key] = []
    for shard, folder, index in zip(shards, folders, indices, strict=True):
        classes = classes_by_folder[folder]
        own = labels[len(found) : len(found) + len(index.keys)]
        if classes is None and has_numbers(own):
            raise DataError(f"{shard}: {MIXED.format('of this and of other shards')}")
        if classes is not None and set(classes) != set(declared):
            other = sorted(map(str, set(classes) ^ set(declared)))
            raise DataError(
                f"{folder / CARD}: has other classes than the card of the first shards, such as `{other[0]}`. Train on "
                "shards of one data set, or set data.labels: false."
            )
        found += [_name(label, classes) for label in own]
    return found, declared


def has_numbers(labels: Sequence[Key] | None) -> bool:
    """Return whether a label is a number."""
    return any(isinstance(label, int) and label != NO_LABEL for label in labels or ())


def _name(label: Key, classes: Sequence[Key] | None) -> Key:
    if classes is None or not isinstance(label, int) or label not in range(len(classes)):
        return label
    return classes[label]


def _index_all(
    shards: str | list[str], cache: Path, options: WebDatasetOptions, context: DataContext
) -> tuple[PackedStrings, list[ShardIndex]]:
    """Return the paths of shards, each once, and their indices."""
    listed = local_shards([shards] if isinstance(shards, str) else shards, cache, context.allows_pipes)
    paths = list({path.resolve(): path for path in reversed(listed)}.values())[::-1]
    indices = [cached_index(path, cache, options.image_member) for path in paths]
    return PackedStrings([str(path) for path in paths]), indices


def _refuse_common_shards(training: Sequence[str], test: Sequence[str]) -> None:
    common = {Path(shard).resolve() for shard in training} & {Path(shard).resolve() for shard in test}
    if common:
        raise DataError(
            f"{min(common)}: among data.shards and data.test_shards: it would be tested on what was trained on."
        )
