"""Batches for training and evaluation, each a function of (seed, step) and never of a worker's state.

A worker builds whole micro-batches: the number of a micro-batch determines which images, in which order,
flipped or not. So the number of workers changes the speed and nothing else, and a run resumes at any step.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from simflow_plugin.contracts import Example, ImageDataset, ReadsBatches, ToleratesCorruption
from simflow_plugin.data.decoding import CorruptImage
from simflow_plugin.data.options import DEFAULT_MAX_CORRUPT_SHARE
from simflow_plugin.data.order import DataOrder, GlobalBatches, coin_flips
from simflow_plugin.errors import DataError

logger = logging.getLogger(__name__)

PREFETCHED_BATCHES = 4
"""Micro-batches that each worker prepares ahead."""


class Batch(NamedTuple):
    """A micro-batch of one process.

    `images` (B, 3, H, W) float32 in [-1, 1]; `labels` (B,) int64, `NO_LABEL` for none; `indices` (B,) int64
    into the data set; `step` of the optimizer; `offset` of the first row in the global batch of that step;
    `flipped` (B,) bool, which rows are mirrored (what a cache of features needs to know).
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    step: int
    offset: int
    flipped: Tensor


class Read(NamedTuple):
    """Output of a reading process: a micro-batch (None: too many corrupt images), messages by index."""

    batch: Batch | None
    corrupt: dict[int, str]


def make_loader(
    dataset: ImageDataset,
    batches: GlobalBatches,
    seed: int,
    steps: range,
    rank: int = 0,
    horizontal_flip: bool = False,
    num_workers: int = 0,
    corrupt: set[int] | None = None,
) -> Loader:
    """Return the training batches of one process, as many of each step as `batches` accumulates.

    Args:
        batches: their size, and the processes and accumulation steps that share it.
        steps: optimizer steps to serve, without gaps.
        horizontal_flip: mirror every other image, decided by (seed, position).
        num_workers: processes that read images; 0 reads in this one.
        corrupt: images known to be so, which are neither counted nor named again; grows.
    Raises:
        DataError: if the data set is empty.
    """
    source = TrainingSource(dataset, DataOrder(len(dataset), seed), batches, rank, horizontal_flip)
    micros = range(steps.start * batches.accumulation, steps.stop * batches.accumulation)
    return Loader(source, micros, num_workers, set() if corrupt is None else corrupt)


@dataclass(frozen=True)
class TrainingSource(Dataset):
    """Micro-batch number -> micro-batch, for one process; number n is micro-batch n mod A of step n // A."""

    dataset: ImageDataset
    order: DataOrder
    batches: GlobalBatches
    rank: int = 0
    horizontal_flip: bool = False

    def __getitem__(self, number: int) -> Read:
        step, micro = divmod(number, self.batches.accumulation)
        positions = self.batches.positions(step, micro, self.rank)
        rows, corrupt = read_rows(self.dataset, self.order.indices(positions).tolist())
        if rows is None:
            return Read(None, corrupt)
        images, flipped = to_float(rows.images), torch.zeros(len(positions), dtype=torch.bool)
        if self.horizontal_flip:
            flipped = coin_flips(self.order.seed, "flip", positions)
            images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
        offset = self.batches.offset(micro, self.rank)
        return Read(Batch(images, rows.labels, rows.indices, step, offset, flipped), corrupt)


@dataclass
class Loader:
    """Iterates over micro-batches and watches over corrupt images.

    Args:
        numbers: of the micro-batches to serve, in this order.
    Attributes:
        corrupt: indices of images that could not be read so far, each counted once.
    """

    source: TrainingSource
    numbers: range
    num_workers: int = 0
    corrupt: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Batch]:
        reader = DataLoader(
            self.source,
            batch_size=None,
            sampler=self.numbers,  # type: ignore[arg-type]
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=PREFETCHED_BATCHES if self.num_workers else None,
            # Without its own generator a DataLoader draws from, and so moves, the global one.
            generator=torch.Generator(),
            worker_init_fn=_leave_signals_to_parent if self.num_workers else None,
        )
        for read in reader:
            watch_corrupt(self.source.dataset, read.corrupt, self.corrupt)
            assert read.batch is not None, (
                "a batch is withheld only when the share of corrupt images was exceeded"
            )
            yield read.batch


def _leave_signals_to_parent(worker_id: int) -> None:
    """Let a reading process outlive a signal that is sent to the whole group, as schedulers and torchrun do.

    Its parent finishes the step, saves and ends it; a reader that dies first takes the parent with it, unsaved. If the
    parent is killed, torch's watchdog ends the reader.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def evaluation_batches(
    dataset: ImageDataset,
    batch_size: int,
    indices: Sequence[int] | None = None,
    corrupt: set[int] | None = None,
) -> Iterator[Batch]:
    """Yield images in order, without augmentation; a corrupt one is left out, and counted.

    Args:
        batch_size: the last batch can be smaller.
        indices: which images; None for all.
        corrupt: images that could not be read, for whoever states how many were measured; grows.
    Returns:
        batches with `step` 0 and `offset` the number of images asked for before.
    Raises:
        DataError: if more images are corrupt than the data set allows.
    """
    wanted = range(len(dataset)) if indices is None else indices
    known = set() if corrupt is None else corrupt
    for start in range(0, len(wanted), batch_size):
        rows, found = read_rows(dataset, wanted[start : start + batch_size], replace=False)
        watch_corrupt(dataset, found, known)
        if rows is not None and len(rows.indices):
            unflipped = torch.zeros(len(rows.indices), dtype=torch.bool)
            yield Batch(to_float(rows.images), rows.labels, rows.indices, 0, start, unflipped)


class Rows(NamedTuple):
    """Images uint8 (B, 3, H, W), labels (B,) int64, indices (B,) int64 as read."""

    images: Tensor
    labels: Tensor
    indices: Tensor


def read_rows(
    dataset: ImageDataset, indices: Sequence[int], replace: bool = True
) -> tuple[Rows | None, dict[int, str]]:
    """Read images by index; in place of a corrupt one take the next that can be read, or leave it out.

    Args:
        replace: take the next readable image (training) or none (evaluation).
    Returns:
        the rows, and the message of every corrupt image met, by index. No rows when more were met than
        allowed, or when nothing is left.
    """
    if isinstance(dataset, ReadsBatches):
        images, labels = dataset.read_batch(indices)
        return Rows(images, labels, torch.as_tensor(indices, dtype=torch.int64)), {}
    corrupt: dict[int, str] = {}
    limit = max_num_corrupt(dataset)
    examples: list[Example] = []
    used: list[int] = []
    for wanted in indices:
        index = wanted
        example = _read(dataset, index, corrupt)
        while example is None and replace and len(corrupt) <= limit:
            index = (index + 1) % len(dataset)
            example = _read(dataset, index, corrupt)
        if example is not None:
            examples.append(example)
            used.append(index)
    if not examples or len(corrupt) > limit:
        return None, corrupt
    labels = torch.tensor([example.label for example in examples], dtype=torch.int64)
    return Rows(torch.stack([example.image for example in examples]), labels, torch.tensor(used)), corrupt


def _read(dataset: ImageDataset, index: int, corrupt: dict[int, str]) -> Example | None:
    if index in corrupt:
        return None
    try:
        return dataset[index]
    except CorruptImage as error:
        corrupt[index] = str(error)
        return None


def max_num_corrupt(dataset: ImageDataset) -> int:
    """Return how many images of the data set may be corrupt.

    A share above 0 allows at least one, so that one bad file does not stop a small run; never all of them.
    """
    share = DEFAULT_MAX_CORRUPT_SHARE
    if isinstance(dataset, ToleratesCorruption):
        share = dataset.max_corrupt_share
    allowed = max(1, int(share * len(dataset))) if share > 0 else 0
    return min(allowed, len(dataset) - 1)


def watch_corrupt(dataset: ImageDataset, corrupt: dict[int, str], known: set[int]) -> None:
    """Log images that turned out corrupt, once each, and stop when they are too many.

    Args:
        corrupt: message by index, just met.
        known: indices met so far; grows.
    Raises:
        DataError: when more than the data set's `max_corrupt_share` are corrupt.
    """
    for index, message in corrupt.items():
        if index not in known:
            known.add(index)
            logger.warning("corrupt image skipped (%d so far): %s", len(known), message)
    check_corrupt(dataset, len(known), f", the last: {list(corrupt.values())[-1]}" if corrupt else "")


def check_corrupt(dataset: ImageDataset, num_corrupt: int, example: str = "") -> None:
    """Raise DataError when more images are corrupt than the data set's `max_corrupt_share` allows."""
    allowed = max_num_corrupt(dataset)
    if num_corrupt > allowed:
        raise DataError(
            f"{num_corrupt} of {len(dataset)} images are corrupt, more than the {allowed} that "
            f"data.max_corrupt_share allows{example}. Mend or remove them, or raise data.max_corrupt_share."
        )


def to_float(images: Tensor) -> Tensor:
    """Turn uint8 images in [0, 255] into float32 in [-1, 1]."""
    return images.to(torch.float32).div_(127.5).sub_(1.0)
