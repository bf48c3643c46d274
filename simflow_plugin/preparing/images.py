"""Preparing a data set: every image decoded, cropped and stored once, by several processes, with a card.

    OUT/train-000000.tar ...  test-000000.tar ...  dataset.json  README.md

What is held out stays held out: the splits are those that training on DATA would use. `dataset.json` is written last;
until then the same command goes on where it was, and refuses other settings.
"""

from __future__ import annotations

import json
import os
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
from simflow_plugin.data.loader import check_corrupt
from simflow_plugin.data.webdataset import CARD
from simflow_plugin.errors import DataError, EmptySplit, RunDirectoryError
from simflow_plugin.files import check_new_folder, read_json_object, write_text_atomically
from simflow_plugin.preparing.card import images_card
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
        folder: new, empty, or begun with the same settings.
        num_workers: processes; 1 works in this one. They do not change a byte.
    Returns:
        The card, as in `dataset.json`.
    Raises:
        RunDirectoryError: if the folder holds something else, or is finished.
        DataError: if more images are damaged than `max_corrupt_share` of the data set allows.
    """
    _begin(preparation, folder)
    splits: dict[str, Any] = {}
    classes = None
    for split in SPLITS:
        try:
            dataset = preparation.dataset(split)
        except EmptySplit:
            continue
        classes = dataset.class_names
        facts = _write_split(preparation, dataset, split, folder, num_workers)
        damaged = [problem for shard in facts for problem in shard.damaged]
        check_corrupt(dataset, len(damaged), f", such as {damaged[0]}" if damaged else "")
        splits[split] = _described(facts, damaged, classes)
    if not splits:
        raise DataError(f"{preparation.data.name}: holds no image")
    card = {"written_by": "simflow prepare", **preparation.to_json(), "classes": classes, "splits": splits}
    card = without_folders(card, preparation.data)
    write_text_atomically(folder / "README.md", images_card(folder.name, card))
    write_text_atomically(folder / CARD, json.dumps(card, indent=1) + "\n")
    remove_facts_files(folder)
    (folder / BEGUN).unlink()
    return card


def without_folders(value: Any, data: Part) -> Any:
    """Return `value` without the folders of this machine that the data set's options name: a card is passed on."""
    if isinstance(value, dict):
        return {key: without_folders(entry, data) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_folders(entry, data) for entry in value]
    if not isinstance(value, str):
        return value
    for option in data.options.values():
        if isinstance(option, str) and os.path.isabs(option):
            value = value.replace(f"{option}{os.sep}", "").replace(option, Path(option).name)
    return value


def _begin(preparation: Preparation, folder: Path) -> None:
    begun = folder / BEGUN
    if not begun.is_file():
        check_new_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text_atomically(begun, json.dumps(preparation.to_json(), indent=1) + "\n")
        return
    before = read_json_object(begun, RunDirectoryError)
    changed = sorted(key for key, value in preparation.to_json().items() if before.get(key) != value)
    if changed:
        raise RunDirectoryError(
            f"{folder}: was begun with {changed[0]} {before.get(changed[0])}, and this is "
            f"{preparation.to_json()[changed[0]]}. Go on with the settings of then, or choose another --out."
        )


def _write_split(
    preparation: Preparation, dataset: ImageDataset, split: str, folder: Path, num_workers: int
) -> list[ShardFacts]:
    shards = shards_of(split, len(dataset), preparation.images_per_shard)
    found = {shard.name: facts for shard in shards if (facts := finished(shard, folder)) is not None}
    missing = [shard for shard in shards if shard.name not in found]
    done = len(dataset) - sum(shard.stop - shard.start for shard in missing)
    with count_progress(f"preparing {split}", len(dataset), done) as advance:
        if num_workers == 1 or len(missing) < 2:
            for shard in missing:
                found[shard.name] = write_shard(dataset, shard, folder, preparation.image_format)
                advance(shard.stop - shard.start)
        else:
            with _workers(preparation, split, min(num_workers, len(missing))) as pool:
                waiting = {pool.submit(_work, shard, folder): shard for shard in missing}
                for future in as_completed(waiting):
                    shard = waiting[future]
                    found[shard.name] = future.result()
                    advance(shard.stop - shard.start)
    return [found[shard.name] for shard in shards]


@contextmanager
def _workers(preparation: Preparation, split: str, count: int) -> Iterator[ProcessPoolExecutor]:
    """Give processes that have opened the split; after an error none starts another shard."""
    pool = ProcessPoolExecutor(
        count, mp_context=get_context("spawn"), initializer=_open_in_worker, initargs=(preparation, split)
    )
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


_IN_WORKER: dict[str, Any] = {}
"""Of a worker process: its data set and settings, which are opened once."""


def _open_in_worker(preparation: Preparation, split: str) -> None:
    _IN_WORKER.update(dataset=preparation.dataset(split), image_format=preparation.image_format)


def _work(shard: Shard, folder: Path) -> ShardFacts:
    return write_shard(_IN_WORKER["dataset"], shard, folder, _IN_WORKER["image_format"])


def _described(facts: list[ShardFacts], damaged: list[str], classes: list[str] | None) -> dict[str, Any]:
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
        "damaged": damaged,
        "shards": [
            {
                key: value
                for key, value in asdict(shard).items()
                if key in ("name", "images", "bytes", "sha256")
            }
            for shard in facts
        ],
    }
