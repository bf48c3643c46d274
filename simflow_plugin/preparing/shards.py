"""One webdataset shard of center-cropped images, the same bytes whoever writes it and whenever.

    00000012.png    the image
    00000012.cls    its class by number, where there are classes
    00000012.txt    the name of that class

A shard stands for a range of the data set's images. It appears under its name only when it is whole, with its facts
beside it, so that an interrupted preparation goes on with the shards that are missing.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from simflow_plugin.contracts import NO_LABEL, ImageDataset
from simflow_plugin.data.decoding import CorruptImage
from simflow_plugin.errors import RunDirectoryError
from simflow_plugin.files import file_digest, read_json_object, replacing, write_text_atomically

Format = Literal["png", "jpg", "webp"]
SAVING: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG", "compress_level": 6},
    "jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    "webp": {"format": "WEBP", "lossless": True, "method": 4},
}


@dataclass(frozen=True)
class Shard:
    """Images `start` to `stop` of a data set, in the file `name`."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class ShardFacts:
    """Content of a shard.

    Args:
        name: of the file.
        images: written.
        bytes: of the file.
        sha256: of the file.
        images_by_class: class number -> images; -1 for those without a class.
        damaged: what is wrong with each image that was left out.
    """

    name: str
    images: int
    bytes: int
    sha256: str
    images_by_class: dict[str, int] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)


def shards_of(prefix: str, num_images: int, images_per_shard: int) -> list[Shard]:
    """Return the shards of a split, which `prefix` names."""
    starts = range(0, num_images, images_per_shard)
    return [
        Shard(f"{prefix}-{number:06d}.tar", start, min(start + images_per_shard, num_images))
        for number, start in enumerate(starts)
    ]


def finished(shard: Shard, folder: Path) -> ShardFacts | None:
    """Return the facts of a shard that was written before, whole and without damaged images; None otherwise.

    Images that were damaged then may have been mended, or the disk was away: they are read again.
    """
    path, beside = folder / shard.name, _facts_file(folder, shard)
    if not (path.is_file() and beside.is_file()):
        return None
    facts = ShardFacts(**read_json_object(beside, RunDirectoryError))
    is_whole = path.stat().st_size == facts.bytes and file_digest(path) == facts.sha256
    return facts if is_whole and not facts.damaged else None


def write_shard(dataset: ImageDataset, shard: Shard, folder: Path, image_format: Format) -> ShardFacts:
    """Write one shard; images that cannot be read are left out and named in the facts."""
    by_class: Counter[str] = Counter()
    damaged: list[str] = []
    path = folder / shard.name
    with replacing(path, RunDirectoryError) as part:
        with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
            for index in range(shard.start, shard.stop):
                try:
                    image, label = dataset[index]
                except CorruptImage as error:
                    damaged.append(str(error))
                    continue
                key = f"{index:08d}"
                _add(tar, f"{key}.{image_format}", encoded(image.permute(1, 2, 0).numpy(), image_format))
                if label != NO_LABEL:
                    name = dataset.class_names[label] if dataset.class_names is not None else str(label)
                    _add(tar, f"{key}.cls", str(label).encode())
                    _add(tar, f"{key}.txt", name.encode())
                by_class[str(label)] += 1
        num_bytes, digest = part.stat().st_size, file_digest(part)  # of what this call wrote
    facts = ShardFacts(shard.name, sum(by_class.values()), num_bytes, digest, dict(by_class), damaged)
    write_text_atomically(_facts_file(folder, shard), json.dumps(asdict(facts), indent=1) + "\n")
    return facts


def remove_facts_files(folder: Path) -> None:
    """Remove what only an interrupted preparation needs."""
    for file in folder.glob(".*.tar.json"):
        file.unlink()


def encoded(pixels: Any, image_format: Format) -> bytes:
    """Return an image (H, W, 3) uint8 as the bytes of a file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, **SAVING[image_format])
    return buffer.getvalue()


def _facts_file(folder: Path, shard: Shard) -> Path:
    return folder / f".{shard.name}.json"


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a member without owner, time or mode of this machine: the bytes depend on the images alone."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o644
    tar.addfile(member, io.BytesIO(content))
