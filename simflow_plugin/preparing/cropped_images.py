"""Preparing a data set: every image decoded, cropped and stored once, by several processes, with a card.

    OUT/train-000000.tar ...  test-000000.tar ...  dataset.json  README.md

What is held out stays held out: the splits are those that training on DATA would use. `dataset.json` is written last;
until then the same command goes on where it was, and refuses other settings and other images.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from simflow_plugin import registry
from simflow_plugin.contracts import DataContext, ImageDataset
from simflow_plugin.data.disk_cache import cache_folder
from simflow_plugin.data.loader import check_corrupt
from simflow_plugin.data.webdataset import CARD
from simflow_plugin.errors import DataError, EmptySplit
from simflow_plugin.files import write_text_atomically
from simflow_plugin.preparing.begun import begun_folder, content_fingerprint, without_tolerance
from simflow_plugin.preparing.data_card import images_card
from simflow_plugin.preparing.shards import (
    Format,
    Shard,
    ShardFacts,
    finished,
    remove_facts_files,
    shards_of,
    write_shard,
)
from simflow_plugin.progress_bar import count_progress
from simflow_plugin.registry import Part
from simflow_plugin.runs.exported import without_local_folders

SPLITS = ("train", "test")
BEGUN = ".preparing.json"


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
        return {
            "data": self.data.model_dump(mode="json"),
            "image_size": self.image_size,
            "images_per_shard": self.images_per_shard,
            "image_format": self.image_format,
        }


def prepare(preparation: Preparation, folder: Path, num_workers: int) -> dict[str, Any]:
    """Write the shards of all splits and their card; goes on where an interrupted call was.

    Args:
        preparation: what to write.
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
    with begun_folder(folder, BEGUN, settings | {"data": without_tolerance(settings["data"])}, content):
        splits: dict[str, Any] = {}
        classes = None
        for split, dataset in datasets.items():
            classes = dataset.class_names
            facts = _write_split(preparation, dataset, split, folder, num_workers)
            splits[split] = _described(facts, _local_folders(preparation.data), classes)
        card = {"written_by": "simflow prepare", **settings, "classes": classes, "splits": splits}
        card["data"] = without_local_folders(settings["data"])  # a card is passed on
        write_text_atomically(folder / "README.md", images_card(folder.name, card))
        write_text_atomically(folder / CARD, json.dumps(card, indent=1) + "\n")
        remove_facts_files(folder)
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


def _write_split(
    preparation: Preparation, dataset: ImageDataset, split: str, folder: Path, num_workers: int
) -> list[ShardFacts]:
    shards = shards_of(split, len(dataset), preparation.images_per_shard)
    found = {shard.name: facts for shard in shards if (facts := finished(shard, folder)) is not None}
    missing = [shard for shard in shards if shard.name not in found]
    done = len(dataset) - sum(shard.stop - shard.start for shard in missing)
    damaged: list[str] = []

    def finish(shard: Shard, facts: ShardFacts) -> None:
        found[shard.name] = facts
        advance(shard.stop - shard.start)
        damaged.extend(facts.damaged)
        check_corrupt(dataset, len(damaged), f", such as {damaged[0]}" if damaged else "")

    with count_progress(f"preparing {split}", len(dataset), done) as advance:
        if num_workers == 1 or len(missing) < 2:
            for shard in missing:
                finish(shard, write_shard(dataset, shard, folder, preparation.image_format))
        else:
            with _workers(dataset, preparation.image_format, min(num_workers, len(missing))) as pool:
                waiting = {pool.submit(_work, shard, folder): shard for shard in missing}
                for future in as_completed(waiting):
                    finish(waiting[future], future.result())
    return [found[shard.name] for shard in shards]


@contextmanager
def _workers(dataset: ImageDataset, image_format: Format, count: int) -> Iterator[ProcessPoolExecutor]:
    """Give processes that have the data set; after an error none starts another shard.

    It is sent to them: its part may have been registered by the caller alone.
    """
    pool = ProcessPoolExecutor(
        count,
        mp_context=get_context("spawn"),
        initializer=_keep_in_worker,
        initargs=(dataset, image_format),
    )
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


_IN_WORKER: dict[str, Any] = {}
"""Of a worker process: the data set and the format, which are sent once."""


def _keep_in_worker(dataset: ImageDataset, image_format: Format) -> None:
    _IN_WORKER.update(dataset=dataset, image_format=image_format)


def _work(shard: Shard, folder: Path) -> ShardFacts:
    return write_shard(_IN_WORKER["dataset"], shard, folder, _IN_WORKER["image_format"])


def _described(facts: list[ShardFacts], folders: list[str], classes: list[str] | None) -> dict[str, Any]:
    by_class: Counter[str] = Counter()
    for shard in facts:
        by_class.update(shard.images_by_class)
    names = {
        number: classes[int(number)] if classes and int(number) >= 0 else "without a class"
        for number in by_class
    }
    return {
        "images": sum(shard.images for shard in facts),
        "images_by_class": {names[number]: by_class[number] for number in sorted(by_class, key=int)},
        "damaged": [_without_folders(problem, folders) for shard in facts for problem in shard.damaged],
        "shards": [
            {
                key: value
                for key, value in asdict(shard).items()
                if key in ("name", "images", "bytes", "sha256")
            }
            for shard in facts
        ],
    }
