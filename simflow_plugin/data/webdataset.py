"""WebDataset shards as a map-style data set: tar files of samples, read at random by an index of offsets.

A sample is the run of members with one key, the name up to its first dot: `0001.jpg`, `0001.cls` (a number)
or `0001.json` (with `label`). Shards that are streamed cannot resume where they were; with an index, any
image is one seek away, so that the order is that of every other data set and resumes bit for bit.
"""

from __future__ import annotations

import json
import os
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import Field

from simflow_plugin import registry
from simflow_plugin.contracts import NO_LABEL, DataContext
from simflow_plugin.data.disk_cache import cache_folder, file_facts, fingerprint, write_atomically
from simflow_plugin.data.image_files import (
    FileDataset,
    FileOptions,
    PackedStrings,
    choose_labels,
    numbered_classes,
    own_or_held_out,
)
from simflow_plugin.data.images import IMAGE_SUFFIXES, CorruptImage, decode_image
from simflow_plugin.data.tar_shards import local_shards
from simflow_plugin.errors import DataError


@dataclass(frozen=True)
class ShardIndex:
    """Index of the images in one shard.

    Args:
        keys: of the samples.
        offsets: (N,) int64, bytes from the start of the tar file.
        sizes: (N,) int64, bytes.
        labels: (N,) int64, `NO_LABEL` for none.
    """

    keys: list[str]
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray


@registry.DATASETS.register("webdataset")
class WebDataset(FileDataset):
    """Images in tar shards, local or fetched to a cache first.

    Raises:
        DataError: if a shard is missing, compressed, cut off or without images, or labels are asked for that
            are not there.
    """

    class Options(FileOptions):
        shards: str | list[str] = Field(
            description="paths, globs, addresses (http, https, file, pipe:command); {0000..0012} is a range"
        )
        test_shards: str | list[str] | None = Field(
            None, description="the same for testing; null: hold a share out"
        )
        cache: str | None = Field(
            None, description="folder for fetched shards and indices; null: the usual one"
        )

    def __init__(self, options: Options, context: DataContext) -> None:
        cache = Path(options.cache).expanduser() if options.cache else cache_folder() / "webdataset"
        own = options.test_shards is not None
        wanted = options.test_shards if own and context.split == "test" else options.shards
        assert wanted is not None
        self.shards, indices = _index_all(wanted, cache)
        where = f"{self.shards[0]} and {len(self.shards) - 1} more shards"
        numbers = np.concatenate([index.labels for index in indices])
        labels = choose_labels(where, _complete(where, numbers), options.labels)
        num_classes = None
        if labels is not None:
            training = (
                [numbers]
                if wanted is options.shards
                else [i.labels for i in _index_all(options.shards, cache)[1]]
            )
            num_classes = 1 + max(int(part.max()) for part in training)
        rows, targets = own_or_held_out(where, len(numbers), labels, context.split, options, own)
        self._shard = np.repeat(np.arange(len(indices)), [len(index.keys) for index in indices])[rows]
        self._offset = np.concatenate([index.offsets for index in indices])[rows]
        self._size = np.concatenate([index.sizes for index in indices])[rows]
        keys = [key for index in indices for key in index.keys]
        names = [keys[row] for row in rows]
        super().__init__(names, targets, numbered_classes(num_classes), context.image_size, options)

    def read_image(self, index: int) -> Image.Image:
        size = int(self._size[index])
        try:
            with open(self.shards[self._shard[index]], "rb") as file:
                file.seek(int(self._offset[index]))
                content = file.read(size)
        except OSError as error:
            raise CorruptImage(f"{self.describe(index)}: {error}") from error
        return decode_image(content, self.describe(index))

    def content_facts(self) -> dict[str, Any]:
        shards = [(str(Path(shard).resolve()), *file_facts(Path(shard))) for shard in self.shards]
        return super().content_facts() | {"shards": fingerprint({"shards": shards})}

    def describe(self, index: int) -> str:
        return f"{self.shards[self._shard[index]]}:{self.names[index]}"


def _index_all(shards: str | list[str], cache: Path) -> tuple[PackedStrings, list[ShardIndex]]:
    paths = local_shards([shards] if isinstance(shards, str) else shards, cache)
    return PackedStrings([str(path) for path in paths]), [cached_index(path, cache) for path in paths]


def _complete(where: str, numbers: np.ndarray) -> list[int] | None:
    """Return the labels if every image has one, None if none has.

    Raises:
        DataError: if only some have.
    """
    missing = int((numbers == NO_LABEL).sum())
    if missing == len(numbers):
        return None
    if missing:
        raise DataError(
            f"{where}: {missing} of {len(numbers)} images have no .cls or .json label beside them."
        )
    return numbers.tolist()


def cached_index(path: Path, cache: Path) -> ShardIndex:
    """Return the index of one shard, from the cache unless the shard's size or time has changed."""
    num_bytes, modified = file_facts(path)
    facts = {"shard": str(path.resolve()), "bytes": num_bytes, "modified_ns": modified}
    file = cache / "index" / f"{fingerprint(facts)}.npz"
    if file.is_file():
        try:
            with np.load(file, allow_pickle=False) as stored:
                return ShardIndex(
                    stored["keys"].tolist(), stored["offsets"], stored["sizes"], stored["labels"]
                )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            file.unlink()  # damaged; it is made anew from the shard
    index = index_shard(path)

    def write(target: Path) -> None:
        with open(target, "wb") as stream:
            np.savez(stream, keys=index.keys, offsets=index.offsets, sizes=index.sizes, labels=index.labels)

    write_atomically(file, write)
    return index


def index_shard(path: Path) -> ShardIndex:
    """Read the headers of a tar file and note where its images are.

    Raises:
        DataError: if it is missing, compressed, damaged, or holds no image.
    """
    keys, offsets, sizes, labels = [], [], [], []
    try:
        # Mode "r:" refuses compression: there is no seeking in a compressed stream.
        with tarfile.open(path, "r:") as archive:
            for key, members in _samples(archive):
                image = next((member for suffix, member in members.items() if suffix in IMAGE_SUFFIXES), None)
                if image is None:
                    continue
                keys.append(key)
                offsets.append(image.offset_data)
                sizes.append(image.size)
                labels.append(_label(archive, members))
    except (OSError, tarfile.TarError, EOFError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not a plain tar shard, or damaged: {type(error).__name__}: {error}. Fetch it again, or "
            "unpack .tar.gz."
        ) from error
    if not keys:
        raise DataError(
            f"{path}: holds no image. Looked for members ending in {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    return ShardIndex(keys, np.array(offsets), np.array(sizes), np.array(labels))


def _samples(archive: tarfile.TarFile) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Yield (key, member by suffix); members of one sample follow each other."""
    key, members = None, {}  # type: ignore[var-annotated]
    for member in archive:
        if not member.isfile():
            continue
        folder, name = os.path.split(member.name)
        stem, _, suffix = name.partition(".")
        found = f"{folder}/{stem}" if folder else stem
        if key is not None and found != key:
            yield key, members
            members = {}
        key = found
        members[f".{suffix.lower()}"] = member
    if key is not None:
        yield key, members


def _label(archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo]) -> int:
    def content(suffix: str) -> bytes:
        stream = archive.extractfile(members[suffix])
        assert stream is not None
        return stream.read()

    if ".cls" in members:
        return int(content(".cls"))
    if ".json" in members:
        return int(json.loads(content(".json")).get("label", NO_LABEL))
    return NO_LABEL
