"""The index of one tar shard: offsets and sizes of its images, labels and captions of its samples.

A sample is the members with one key, the path up to the first dot of its last part (`0001.jpg`, `0001.cls`), wherever
in the shard they lie. A shard must end as the format demands, in two blocks of zeros: one that was cut off between two
members, or whose next header is damaged, would be read as a shorter one.
"""

from __future__ import annotations

import json
import os
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simflow_plugin.contracts import NO_LABEL
from simflow_plugin.data.decoding import MAX_FILE_BYTES
from simflow_plugin.data.disk_cache import file_facts, fingerprint
from simflow_plugin.data.folder_scan import is_hidden
from simflow_plugin.data.image_formats import image_suffixes, is_image_name, known_endings, unread_kind
from simflow_plugin.data.labels import REMEDY, Key, parse_label, shown
from simflow_plugin.errors import DataError
from simflow_plugin.files import replacing

FORMAT = 2
"""Of the cached index; an index of another format is made anew."""
BLOCK = 512
END_BLOCKS = 2
MAX_LABEL_BYTES = 1 << 20
LABEL_SUFFIXES = (".cls", ".label", ".json")
CAPTION_SUFFIX = ".txt"
HIDDEN, DOTTED, LINKS = "hidden or system members", "images with more than one dot in the name", "links"


@dataclass(frozen=True)
class ShardIndex:
    """Index of the images in one shard.

    Args:
        keys: (N,) texts, of the samples.
        offsets: (N,) int64, bytes from the start of the tar file.
        sizes: (N,) int64, bytes.
        labels: (N,) texts, the label members as JSON: a number or a text, null for no label, `{"problem": ...}` for
            one that cannot be read (it is refused when labels are used).
        captions: the same of `.txt` members, which are labels if there are no others and all are numbers.
        ignored: members left out, by kind.
    """

    keys: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    captions: np.ndarray
    ignored: dict[str, int]


def cached_index(path: Path, cache: Path, image_member: str | None = None) -> ShardIndex:
    """Return the index of one shard, from the cache unless the shard's size or time has changed."""
    num_bytes, modified = file_facts(path)
    facts = {"shard": str(path.resolve()), "bytes": num_bytes, "modified_ns": modified}
    facts |= {"format": FORMAT, "image_member": image_member, "endings": sorted(image_suffixes())}
    file = cache / "index" / f"{fingerprint(facts)}.npz"
    if file.is_file():
        try:
            with np.load(file, allow_pickle=False) as stored:
                return ShardIndex(**dict(stored) | {"ignored": json.loads(str(stored["ignored"]))})
        except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile):
            file.unlink()  # damaged; it is made anew from the shard
    index = index_shard(path, image_member)
    with replacing(file, DataError) as part, part.open("wb") as stream:
        np.savez(stream, **vars(index) | {"ignored": json.dumps(index.ignored)})
    return index


def index_shard(path: Path, image_member: str | None = None) -> ShardIndex:
    """Read the headers of a tar file and note where its images are.

    Args:
        image_member: ending of the image's member, without the first dot; None: the one ending of a known image.
    Raises:
        DataError: if it is missing, compressed, damaged, cut off, holds no image, or a sample has two.
    """
    ignored: Counter[str] = Counter()
    rows = []
    try:
        # Mode "r:" refuses compression: there is no seeking in a compressed stream.
        with tarfile.open(path, "r:") as archive:
            for key, members in _samples(path, archive, ignored).items():
                image = _image_of(path, key, members, image_member, ignored)
                if image is not None:
                    label, caption = (
                        _label(archive, members, suffixes, f"{path}:{key}")
                        for suffixes in (LABEL_SUFFIXES, (CAPTION_SUFFIX,))
                    )
                    rows.append((key, image.offset_data, image.size, label, caption))
    except DataError:
        raise
    # Damaged headers end in ValueError, OverflowError, RecursionError, MemoryError, ...
    except Exception as error:
        raise DataError(
            f"{path}: not a plain tar shard, or damaged: {type(error).__name__}: {error}. Fetch it again, or "
            "unpack .tar.gz."
        ) from error
    if not rows:
        dotted = f" {ignored[DOTTED]} images have more dots in their names: a key ends at the first." * bool(
            ignored[DOTTED]
        )
        raise DataError(f"{path}: holds no image.{dotted} Looked for members ending in {known_endings()}.")
    keys, offsets, sizes, labels, captions = (np.array(column) for column in zip(*rows, strict=True))
    return ShardIndex(keys, offsets, sizes, labels, captions, dict(ignored))


def raw_labels(indices: list[ShardIndex]) -> list[Key] | None:
    """Return the label of every image of some shards, `NO_LABEL` where there is none; None if no image has one.

    Raises:
        DataError: if one cannot be read, naming the sample.
    """
    stored = [label for index in indices for label in index.labels]
    if all(label == "null" for label in stored):
        stored = [caption for index in indices for caption in index.captions]
        if not all(caption.isdigit() for caption in stored):
            return None  # words: captions of images
    found: list[Key] = []
    for label in stored:
        value = json.loads(label)
        if isinstance(value, dict):
            raise DataError(value["problem"])
        found.append(NO_LABEL if value is None else value)
    return found


def _samples(
    path: Path, archive: tarfile.TarFile, ignored: Counter[str]
) -> dict[str, dict[str, tarfile.TarInfo]]:
    """Return the members of every sample by their endings, in the order of their first member."""
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    for member in _members(path, archive):
        parts = member.name.split("/")
        if member.isdir():
            continue
        if any(is_hidden(part) for part in parts if part not in ("", ".", "..")):
            ignored[HIDDEN] += 1
        elif not member.isreg() or member.issparse():
            ignored[LINKS if member.islnk() or member.issym() else "members that are no plain file"] += 1
        else:
            folder, name = os.path.split(member.name)
            stem, _, ending = name.partition(".")
            sample = samples.setdefault(f"{folder}/{stem}" if folder else stem, {})
            if f".{ending.lower()}" in sample:
                raise DataError(
                    f"{path}: two members are called {member.name}: which of them is meant? Remove one of them."
                )
            sample[f".{ending.lower()}"] = member
    return samples


def _members(path: Path, archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members, check that each lies in the file, and that the archive ends as the format demands."""
    num_bytes, last = path.stat().st_size, -1
    for member in archive:
        # A negative size would lead the reader back, and round for ever.
        if member.size < 0 or member.offset <= last or member.offset_data + member.size > num_bytes:
            raise DataError(
                f"{path}: {member.name} has {member.size} bytes, more than the file holds. Fetch it again."
            )
        last = member.offset
        yield member
    last_name = ["the start", *archive.getnames()][-1]
    with open(path, "rb") as file:
        file.seek(archive.offset)
        end = file.read(END_BLOCKS * BLOCK)
        if len(end) < END_BLOCKS * BLOCK or any(end):
            raise DataError(
                f"{path}: no end-of-archive blocks after {last_name}: cut off or damaged there, and members "
                "after it are lost. Fetch it again."
            )
        while rest := file.read(1 << 20):
            if any(rest):
                raise DataError(
                    f"{path}: data after the end of the archive, at byte {file.tell() - len(rest)} or later: were "
                    "shards joined? Unpack them and write one."
                )


def _image_of(
    path: Path,
    key: str,
    members: dict[str, tarfile.TarInfo],
    image_member: str | None,
    ignored: Counter[str],
) -> tarfile.TarInfo | None:
    """Return the image of a sample, and count the members that are not used."""
    wanted = f".{image_member.lower().lstrip('.')}" if image_member is not None else None
    images = [ending for ending in members if (ending == wanted if wanted else ending in image_suffixes())]
    if len(images) > 1:
        raise DataError(
            f"{path}: sample `{key}` has two images: {images[0]} and {images[1]}. Set data.image_member to the ending "
            "of the one that is meant."
        )
    for ending in members:
        if ending not in (*images, *LABEL_SUFFIXES):
            dotted = ending.count(".") > 1 and is_image_name(f"x{ending}")
            ignored[DOTTED if dotted else unread_kind(ending)] += 1
    if not images:
        return None
    image = members[images[0]]
    if image.size > MAX_FILE_BYTES:
        raise DataError(
            f"{path}: {image.name} has {image.size} bytes, more than the {MAX_FILE_BYTES} of an image. Remove it."
        )
    return image


def _label(
    archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo], suffixes: tuple[str, ...], sample: str
) -> str:
    """Return the label of a sample as JSON, or null, or what is wrong with it."""
    member = next((members[suffix] for suffix in suffixes if suffix in members), None)
    if member is None:
        return "null"
    record = f"{sample} ({os.path.basename(member.name)})"
    try:
        if member.size > MAX_LABEL_BYTES:
            raise DataError(
                f"{record}: {member.size} bytes, more than the {MAX_LABEL_BYTES} of a label. {REMEDY}."
            )
        stream = archive.extractfile(member)
        assert stream is not None
        return json.dumps(_parse(stream.read(), member.name.lower().endswith(".json"), record))
    except DataError as error:
        return json.dumps({"problem": str(error)})


def _parse(content: bytes, is_json: bool, record: str) -> Key | None:
    try:
        value: Any = content.decode("utf-8")
        if is_json:
            document = json.loads(value)
            if not isinstance(document, dict):
                raise ValueError("expected a mapping with `label`")
            if "label" not in document:
                return None
            value = document["label"]
    except (ValueError, RecursionError) as error:
        raise DataError(f"{record}: holds {shown(content, 40)}: {error}. {REMEDY}.") from error
    return parse_label(value, record)
