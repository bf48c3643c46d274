"""A folder that is being filled by one process, and goes on after an interruption: a lock, and what it was begun with.

OUT/.unfinished/begun.json    settings and fingerprints of the data, beside the facts of what is written
OUT/.lock                     see `simflow_plugin.runs.run_lock`; both are gone once the folder is finished
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from simflow_plugin.contracts import ImageDataset
from simflow_plugin.data.disk_cache import fingerprint
from simflow_plugin.data.feature_cache import dataset_facts
from simflow_plugin.data.webdataset import CARD
from simflow_plugin.errors import RunDirectoryError
from simflow_plugin.files import check_new_folder, read_json_object, write_text_atomically
from simflow_plugin.registry import Part
from simflow_plugin.runs.run_lock import RunLock

LOCK, UNFINISHED = ".lock", ".unfinished"
TOLERANCE = "max_corrupt_share"
"""Option of a data set that decides whether the work is refused, and no byte of it."""


@contextmanager
def begun_folder(folder: Path, settings: Mapping[str, Any], content: Mapping[str, str]) -> Iterator[None]:
    """Hold a folder while it is filled; after the block it is finished, after an error it can be gone on with.

    Args:
        folder: new, empty, or begun with the same settings and data.
        settings: what decides the content beside the data, as JSON.
        content: fingerprint of the data by split.
    Raises:
        RunDirectoryError: if the folder holds something else, is finished, was begun with other settings or data, or
            another process is filling it.
    """
    begun = folder / UNFINISHED / "begun.json"
    _check(folder, begun)
    folder.mkdir(parents=True, exist_ok=True)
    lock = RunLock(folder)
    try:
        _check(folder, begun)  # another process may have finished it meanwhile
        _begin_or_compare(folder, begun, settings, content)
        yield
        shutil.rmtree(begun.parent)
    finally:
        lock.release()
        (folder / LOCK).unlink(missing_ok=True)


def write_card(folder: Path, card: Mapping[str, Any], readme: str) -> None:
    """Describe a finished folder, for readers and for programs."""
    write_text_atomically(folder / "README.md", readme)
    write_text_atomically(folder / CARD, json.dumps(card, indent=1) + "\n")


def content_fingerprint(data: Part, dataset: ImageDataset, split: str, image_size: int) -> str:
    """Return a fingerprint of the images and labels of one split, and of the options that they depend on."""
    options = without_tolerance(data.model_dump(mode="json"))
    return fingerprint(dataset_facts(data.name, options, dataset, split, image_size))


def without_tolerance(data: dict[str, Any]) -> dict[str, Any]:
    """Return a data set's options without how many damaged images it bears: it may be raised after a refusal."""
    return {key: value for key, value in data.items() if key != TOLERANCE}


def _check(folder: Path, begun: Path) -> None:
    holds_ours_alone = folder.is_dir() and {entry.name for entry in folder.iterdir()} <= {LOCK, UNFINISHED}
    if not begun.is_file() and not holds_ours_alone:
        check_new_folder(folder)


def _begin_or_compare(
    folder: Path, begun: Path, settings: Mapping[str, Any], content: Mapping[str, str]
) -> None:
    wanted = json.loads(json.dumps({**settings, "content": dict(content)}))
    if not begun.is_file():
        write_text_atomically(begun, json.dumps(wanted, indent=1) + "\n")
        return
    before = read_json_object(begun, RunDirectoryError)
    for key in settings:
        if before.get(key) != wanted[key]:
            raise RunDirectoryError(
                f"{folder}: was begun with {key} {before.get(key)}, and this is {wanted[key]}. Go on with the "
                "settings of then, or choose another --out."
            )
    if before.get("content") != wanted["content"]:
        raise RunDirectoryError(
            f"{folder}: was begun with other images: files of the data set were added, removed or changed since. "
            "Remove the folder, or choose another --out, and begin again."
        )
