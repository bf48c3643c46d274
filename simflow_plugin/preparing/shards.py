"""Files that each hold a range of a data set's images, the same bytes whoever writes them and whenever.

A file appears under its name only when it is whole, and its facts are kept beside it until all are there, so that
interrupted work goes on with the files that are missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from simflow_plugin.contracts import ImageDataset
from simflow_plugin.data.loader import check_corrupt
from simflow_plugin.errors import RunDirectoryError
from simflow_plugin.files import file_digest, read_json_object, write_text_atomically
from simflow_plugin.preparing.begun import UNFINISHED
from simflow_plugin.progress_bar import count_progress


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
        name, bytes, sha256: of the file.
        images: written.
        damaged: what is wrong with each image that was left out.
        totals: what is summed over shards, as JSON.
    """

    name: str
    bytes: int
    sha256: str
    images: int
    damaged: list[str]
    totals: dict[str, Any] = field(default_factory=dict)

    def file(self) -> dict[str, Any]:
        """Return what a card lists of the file."""
        return {"name": self.name, "bytes": self.bytes, "sha256": self.sha256}


Write = Callable[[Shard], ShardFacts]


def shards_of(pattern: str, num_images: int, images_per_shard: int) -> list[Shard]:
    """Return the shards of a split, named by `pattern` with the number in the place of its braces."""
    starts = range(0, num_images, images_per_shard)
    return [
        Shard(pattern.format(number), start, min(start + images_per_shard, num_images))
        for number, start in enumerate(starts)
    ]


def save_facts(
    folder: Path, shard: Shard, part: Path, images: int, damaged: list[str], **totals: Any
) -> ShardFacts:
    """Keep the facts of a shard that this call has written to `part`, whatever gets its name afterwards."""
    facts = ShardFacts(shard.name, part.stat().st_size, file_digest(part), images, damaged, totals)
    write_text_atomically(_facts_file(folder, shard), json.dumps(asdict(facts), indent=1) + "\n")
    return facts


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


def write_missing(
    purpose: str, dataset: ImageDataset, shards: list[Shard], folder: Path, write: Write, num_workers: int = 1
) -> list[ShardFacts]:
    """Write the shards that are not there, and return the facts of all in the order of `shards`.

    Args:
        purpose: shown with the progress.
        dataset: whose images they hold.
        shards: of all its images.
        folder: of the shards.
        write: one of them; can be pickled if there are several processes.
        num_workers: processes; 1 works in this one.
    Raises:
        DataError: as soon as more images are damaged than the data set allows.
    """
    found = {shard.name: facts for shard in shards if (facts := finished(shard, folder)) is not None}
    missing = [shard for shard in shards if shard.name not in found]
    done = len(dataset) - sum(shard.stop - shard.start for shard in missing)
    damaged: list[str] = []
    with (
        count_progress(purpose, len(dataset), done) as advance,
        _workers(write, min(num_workers, len(missing))) as write_all,
    ):
        for facts in write_all(missing):
            found[facts.name] = facts
            advance(facts.images + len(facts.damaged))
            damaged += facts.damaged
            check_corrupt(dataset, len(damaged), f", such as {damaged[0]}" if damaged else "")
    return [found[shard.name] for shard in shards]


@contextmanager
def _workers(write: Write, count: int) -> Iterator[Callable[[list[Shard]], Iterable[ShardFacts]]]:
    """Give a function that writes shards, here or in several processes, and returns facts as they are there.

    After an error no process starts another shard. They are sent `write`, and the data set in it, once: its part may
    have been registered by the caller alone.
    """
    if count < 2:
        yield lambda shards: map(write, shards)
        return
    pool = ProcessPoolExecutor(count, get_context("spawn"), initializer=_keep_in_worker, initargs=(write,))
    try:
        yield lambda shards: (
            future.result() for future in as_completed([pool.submit(_write_in_worker, s) for s in shards])
        )
    finally:
        pool.shutdown(cancel_futures=True)


_in_worker: list[Write] = []


def _keep_in_worker(write: Write) -> None:
    _in_worker.append(write)


def _write_in_worker(shard: Shard) -> ShardFacts:
    return _in_worker[0](shard)


def _facts_file(folder: Path, shard: Shard) -> Path:
    return folder / UNFINISHED / f"{shard.name}.json"
