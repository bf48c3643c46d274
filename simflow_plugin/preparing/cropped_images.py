"""Preparing a data set: every image decoded, cropped and stored once, by several processes, with a card.

    OUT/train-000000.tar ...  test-000000.tar ...  dataset.json  README.md

    train-000000.tar    00000012.png    the image
                        00000012.cls    its class by number, where there are classes
                        00000012.txt    the name of that class

What is held out stays held out: the splits are those that training on DATA would use. `dataset.json` is written last;
until then the same command goes on where it was, and refuses other settings and other images.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from simflow_plugin import registry
from simflow_plugin.contracts import NO_LABEL, DataContext, ImageDataset
from simflow_plugin.data.decoding import CorruptImage
from simflow_plugin.data.disk_cache import cache_folder
from simflow_plugin.errors import DataError, EmptySplit, RunDirectoryError
from simflow_plugin.files import replacing
from simflow_plugin.preparing.begun import begun_folder, content_fingerprint, without_tolerance, write_card
from simflow_plugin.preparing.data_card import images_card
from simflow_plugin.preparing.shards import Shard, ShardFacts, save_facts, shards_of, write_missing
from simflow_plugin.registry import Part
from simflow_plugin.runs.exported import without_local_folders

SPLITS = ("train", "test")
Format = Literal["png", "jpg", "webp"]
SAVING: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG", "compress_level": 6},
    "jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    "webp": {"format": "WEBP", "lossless": True, "method": 4},
}


@dataclass(frozen=True)
class Preparation:
    """Preparation of images.

    Args:
        data: the data set, resolved.
        image_size: side in pixels.
        images_per_shard: in each but the last shard.
        image_format: of the files; png and webp lose nothing.
    """

    data: Part
    image_size: int
    images_per_shard: int = 10_000
    image_format: Format = "png"

    def dataset(self, split: str) -> ImageDataset:
        """Build one split."""
        return self.data.build(registry.DATASETS, DataContext(self.image_size, split))

    def to_json(self) -> dict[str, Any]:
        """Return what decides the bytes of the shards."""
        return vars(self) | {"data": self.data.model_dump(mode="json")}


def prepare(preparation: Preparation, folder: Path, num_workers: int) -> dict[str, Any]:
    """Write the shards of all splits and their card; goes on where an interrupted call was.

    Args:
        folder: new, empty, or begun with the same settings and images; an image that was damaged is tried again.
        num_workers: processes; 1 works in this one. They do not change a byte.
    Returns:
        The card, as in `dataset.json`.
    Raises:
        RunDirectoryError: if the folder holds something else, is finished, or another process is filling it.
        DataError: as soon as more images are damaged than `max_corrupt_share` of the data set allows.
    """
    datasets = _open_splits(preparation)
    content = {
        split: content_fingerprint(preparation.data, dataset, split, preparation.image_size)
        for split, dataset in datasets.items()
    }
    settings = preparation.to_json()
    with begun_folder(folder, settings | {"data": without_tolerance(settings["data"])}, content):
        splits: dict[str, Any] = {}
        classes = None
        for split, dataset in datasets.items():
            classes = dataset.class_names
            shards = shards_of(f"{split}-{{:06d}}.tar", len(dataset), preparation.images_per_shard)
            write = partial(write_shard, dataset, folder, preparation.image_format)
            facts = write_missing(f"preparing {split}", dataset, shards, folder, write, num_workers)
            splits[split] = _described(facts, _local_folders(preparation.data), classes)
        card = {"written_by": "simflow prepare", **settings, "classes": classes, "splits": splits}
        card["data"] = without_local_folders(settings["data"])  # a card is passed on
        write_card(folder, card, images_card(folder.name, card))
    return card


def _open_splits(preparation: Preparation) -> dict[str, ImageDataset]:
    datasets = {}
    for split in SPLITS:
        try:
            datasets[split] = preparation.dataset(split)
        except EmptySplit:
            continue
    if not datasets:
        raise DataError(f"{preparation.data.name}: holds no image")
    return datasets


def _local_folders(value: Any) -> list[str]:
    """Return the folders of this machine that messages about a data set may name, the longest first."""
    found = {str(cache_folder()), str(Path.home())}
    waiting = [value.options if isinstance(value, Part) else value]
    while waiting:
        entry = waiting.pop()
        if isinstance(entry, (dict, list)):
            waiting += entry.values() if isinstance(entry, dict) else entry
        elif isinstance(entry, str) and os.path.isabs(Path(entry).expanduser()):
            path = Path(entry).expanduser()
            found |= {str(folder) for one in (path, path.resolve()) for folder in (one, *one.parents)}
    return sorted((folder for folder in found if len(Path(folder).parts) > 1), key=len, reverse=True)


def _without_folders(message: str, folders: list[str]) -> str:
    for folder in folders:
        message = re.sub(rf"(?<![^\s'\"(:=]){re.escape(folder + os.sep)}", "", message)
    return message


def write_shard(dataset: ImageDataset, folder: Path, image_format: Format, shard: Shard) -> ShardFacts:
    """Write one shard; images that cannot be read are left out and named in the facts."""
    by_class: Counter[str] = Counter()
    damaged: list[str] = []
    with replacing(folder / shard.name, RunDirectoryError) as part:
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
        return save_facts(
            folder, shard, part, sum(by_class.values()), damaged, images_by_class=dict(by_class)
        )


def encoded(pixels: Any, image_format: Format) -> bytes:
    """Return an image (H, W, 3) uint8 as the bytes of a file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, **SAVING[image_format])
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a member without owner, time or mode of this machine: the bytes depend on the images alone."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o644
    tar.addfile(member, io.BytesIO(content))


def _described(facts: list[ShardFacts], folders: list[str], classes: list[str] | None) -> dict[str, Any]:
    by_class: Counter[str] = Counter()
    for shard in facts:
        by_class.update(shard.totals["images_by_class"])
    names = {
        number: classes[int(number)] if classes and int(number) >= 0 else "without a class"
        for number in by_class
    }
    return {
        "images": sum(shard.images for shard in facts),
        "images_by_class": {names[number]: by_class[number] for number in sorted(by_class, key=int)},
        "damaged": [_without_folders(problem, folders) for shard in facts for problem in shard.damaged],
        "shards": [{"images": shard.images, **shard.file()} for shard in facts],
    }
