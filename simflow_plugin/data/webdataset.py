"""WebDataset shards as a map-style data set: tar files of samples, read at random by an index of offsets.

Shards that are streamed cannot resume where they were; with an index, any image is one seek away, so that the order is
that of every other data set and resumes bit for bit. What a sample is: `simflow_plugin.data.tar_index`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from simflow_plugin import registry
from simflow_plugin.contracts import DataContext
from simflow_plugin.data.decoding import CorruptImage
from simflow_plugin.data.disk_cache import cache_folder, file_facts, fingerprint
from simflow_plugin.data.image_files import FileDataset, PackedStrings, own_or_held_out
from simflow_plugin.data.labels import number_labels
from simflow_plugin.data.options import WebDatasetOptions
from simflow_plugin.data.split import check_split
from simflow_plugin.data.tar_index import ShardIndex, cached_index, raw_labels
from simflow_plugin.data.tar_shards import local_shards
from simflow_plugin.errors import DataError


@registry.DATASETS.register("webdataset")
class WebDataset(FileDataset):
    """Images in tar shards, local or fetched to a cache first.

    Raises:
        DataError: if a shard is missing, compressed, cut off or without images, a sample has two images, a label
            cannot be read, or labels are asked for that are not there.
    """

    Options = WebDatasetOptions

    def __init__(self, options: Options, context: DataContext) -> None:
        cache = Path(options.cache).expanduser() if options.cache else cache_folder() / "webdataset"
        own = options.test_shards is not None
        is_test = own and check_split(context.split) == "test"
        wanted = options.test_shards if is_test and options.test_shards is not None else options.shards
        self.shards, indices = _index_all(wanted, cache, options.image_member, context.allows_pipes)
        if is_test:
            _refuse_common_shards(
                shard_paths(options.shards, cache, context.allows_pipes), shard_paths(wanted, cache)
            )
        more = len(self.shards) - 1
        where = f"{self.shards[0]} and {more} more shards" if more else self.shards[0]
        keys = [key for index in indices for key in index.keys]
        labels, classes = None, None
        if options.labels is not False:
            found = raw_labels(indices)
            training = found
            if is_test:
                _, trained_on = _index_all(options.shards, cache, options.image_member, context.allows_pipes)
                training = raw_labels(trained_on)
            labels, classes = number_labels(where, found, training, options.labels, keys)
        rows, targets = own_or_held_out(where, len(keys), labels, context.split, options, own)
        self._shard = np.repeat(np.arange(len(indices)), [len(index.keys) for index in indices])[rows]
        self._offset = np.concatenate([index.offsets for index in indices])[rows]
        self._size = np.concatenate([index.sizes for index in indices])[rows]
        ignored: Counter[str] = Counter()
        for index in indices:
            ignored.update(index.ignored)
        super().__init__([keys[row] for row in rows], targets, classes, context.image_size, options, ignored)

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


def shard_paths(shards: str | list[str], cache: Path, allows_pipes: bool = False) -> list[Path]:
    """Return the paths of shards, each once."""
    listed = local_shards([shards] if isinstance(shards, str) else shards, cache, allows_pipes)
    return list({path.resolve(): path for path in reversed(listed)}.values())[::-1]


def _index_all(
    shards: str | list[str], cache: Path, image_member: str | None, allows_pipes: bool
) -> tuple[PackedStrings, list[ShardIndex]]:
    paths = shard_paths(shards, cache, allows_pipes)
    indices = [cached_index(path, cache, image_member) for path in paths]
    return PackedStrings([str(path) for path in paths]), indices


def _refuse_common_shards(training: list[Path], test: list[Path]) -> None:
    common = {path.resolve() for path in training} & {path.resolve() for path in test}
    if common:
        raise DataError(
            f"{min(common)}: among data.shards and data.test_shards: it would be tested on what was trained on."
        )
