"""Summary of a data set as it was read: images, classes by name, split by split, entries left out.

Printed when training starts, stored with the run, compared on resume and evaluation (`simflow_plugin.data.changes`).
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from pydantic import TypeAdapter

from simflow_plugin.contracts import NO_LABEL, CountsIgnored, HasLabels, ImageDataset, ReadsContent
from simflow_plugin.data.decoding import CorruptImage, used_bits
from simflow_plugin.data.folder_scan import describe_ignored
from simflow_plugin.data.image_files import FileDataset
from simflow_plugin.data.labels import shortened
from simflow_plugin.data.order import sample_rows
from simflow_plugin.errors import DataError

NUM_HASHED = 64
"""Images of a split whose content is hashed."""
NUM_DECODED = 16
"""Of these, images that are decoded when training starts, to see that they can be."""
UNREADABLE = "unreadable"
SHOWN_CLASSES = 10
BALANCED = 1.5
"""Ratio of the largest to the smallest class up to which a split counts as balanced."""


@dataclass(frozen=True)
class SplitSummary:
    """One split as it was read.

    Args:
        num_images: N.
        num_by_class: images of each class, by number; None for an unlabelled split, or one that lists no labels.
        ignored: entries of the source that are no image, by kind.
        digests: of the content and label of up to `NUM_HASHED` images, the same rows each time.
        corrupt: messages of images found unreadable among those decoded.
        notes: on its pixels.
    """

    num_images: int
    num_by_class: list[int] | None = None
    ignored: dict[str, int] = field(default_factory=dict)
    digests: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits of the digests; empty where there are none."""
        content = "\n".join(self.digests).encode()
        return hashlib.blake2b(content, digest_size=6).hexdigest() if self.digests else ""


@dataclass(frozen=True)
class DataSummary:
    """A data set as it was read.

    Args:
        name: of its kind.
        class_names: of training, by number; None for an unlabelled data set.
        splits: by name, `train` and (where there is one) `test`.
        notes: on both.
    """

    name: str
    class_names: list[str] | None
    splits: dict[str, SplitSummary]
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> DataSummary:
        """Return what `to_json` was made from, as read from a run's data.json."""
        return TypeAdapter(cls).validate_python(found)

    def lines(self) -> list[str]:
        """Return the summary for a reader."""
        found = [f"data: {self.name}, {describe_classes(self.class_names)}"]
        for name, split in self.splits.items():
            found.append(f"  {name}: {split.num_images:,} images, {self.describe_labels(split)}")
            found += [f"  {name}: {remark}" for remark in _remarks(split)]
        return found + [f"  note: {note}" for note in self.notes]

    def brief_lines(self) -> list[str]:
        """Return the summary in one line, and below it what is out of the ordinary."""
        counts = [f"{split.num_images:,} {name}" for name, split in self.splits.items()]
        found = [f"data: {self.name}, {describe_classes(self.class_names)}; images: {', '.join(counts)}"]
        for name, split in self.splits.items():
            counted = split.num_by_class
            if counted and max(counted) > BALANCED * min(counted):
                found.append(f"  {name}: {self.describe_labels(split)}")
            found += [f"  {name}: {remark}" for remark in _remarks(split)]
        return found + [f"  note: {note}" for note in self.notes]

    def describe_labels(self, split: SplitSummary) -> str:
        """Return how many images of each class a split has."""
        if self.class_names is None or split.num_by_class is None:
            return "unlabelled"
        counts = split.num_by_class
        if min(counts) == max(counts):
            return f"{counts[0]:,} of each class"
        if len(counts) <= SHOWN_CLASSES:
            return ", ".join(
                f"{name} {count:,}" for name, count in zip(self.class_names, counts, strict=True)
            )
        return f"{min(counts):,} to {max(counts):,} of each class"


def _remarks(split: SplitSummary) -> list[str]:
    """Return what a reader should know of a split: entries left out, images that cannot be read, notes."""
    found = []
    if split.ignored:
        found.append(f"ignored {describe_ignored(split.ignored)}")
    if split.corrupt:
        tried = min(NUM_DECODED, split.num_images)
        found.append(
            f"{len(split.corrupt)} of {tried} images tried cannot be read, such as {split.corrupt[0]}"
        )
    return found + split.notes


def summarize(name: str, train: ImageDataset, test: ImageDataset | None, batch_size: int = 1) -> DataSummary:
    """Read a few images of each split and describe the data set.

    Raises:
        DataError: if labels or classes of the splits do not fit together, or no image that is tried can be read.
    """
    splits = {"train": train} | ({"test": test} if test is not None else {})
    found = {split: summarize_split(dataset, split) for split, dataset in splits.items()}
    notes = [] if test is None else split_notes(train, test)
    if test is None:
        notes.append("no test image: nothing is measured on held-out images")
    if batch_size > len(train):
        notes.append(
            f"training.batch_size {batch_size} is more than the {len(train)} training images: a step shows images twice"
        )
    return DataSummary(name, train.class_names, found, notes)


def summarize_split(dataset: ImageDataset, split: str) -> SplitSummary:
    """Hash, and try to decode, a few images of one split.

    Raises:
        DataError: if a label is out of range, or none of the images tried can be read.
    """
    counts = count_by_class(dataset, split)
    corrupt, bits = [], []
    tried = sample_rows(len(dataset), NUM_DECODED)
    for row in tried:
        try:
            dataset[row]
            bits.append(used_bits(dataset.read_content(row)) if isinstance(dataset, FileDataset) else None)
        except CorruptImage as error:
            corrupt.append(str(error))
    if tried and len(corrupt) == len(tried):
        raise DataError(
            f"{split}: all {len(tried)} images tried are corrupt: none can be read. The first: {corrupt[0]}"
        )
    deep, notes = [used for used in bits if used is not None], []
    if 8 < max(deep, default=0) < 16:
        darker = 2 ** (16 - max(deep))
        notes.append(
            f"{len(deep)} of {len(tried)} images tried have 16 bits and use {max(deep)}: they come out {darker} times "
            "too dark. Scale them to 16 bits, or save them with 8"
        )
    ignored = dict(dataset.ignored) if isinstance(dataset, CountsIgnored) else {}
    return SplitSummary(len(dataset), counts, ignored, content_digests(dataset), corrupt, notes)


def content_digests(dataset: ImageDataset) -> list[str]:
    """Return the digests of up to `NUM_HASHED` images of a split, the same rows each time."""
    return [content_digest(dataset, row) for row in sample_rows(len(dataset), NUM_HASHED)]


def content_digest(dataset: ImageDataset, index: int) -> str:
    """Return 16 hexadecimal digits of one image's content and class, or `UNREADABLE`.

    The encoded file where there is one: decoders of another version may round a pixel otherwise.
    """
    try:
        if isinstance(dataset, ReadsContent):
            content = dataset.read_content(index)
            label = int(dataset.labels[index]) if isinstance(dataset, HasLabels) else NO_LABEL
        else:
            example = dataset[index]
            content, label = example.image.contiguous().numpy().tobytes(), example.label
    except CorruptImage:
        return UNREADABLE
    names = dataset.class_names
    text = names[label] if names is not None and 0 <= label < len(names) else str(label)
    return hashlib.blake2b(
        content + f"\0{text}".encode("utf-8", "surrogateescape"), digest_size=8
    ).hexdigest()


def count_by_class(dataset: ImageDataset, split: str) -> list[int] | None:
    """Return the number of images of each class; None for an unlabelled split, or one that lists no labels.

    Raises:
        DataError: if a label is none of the classes.
    """
    num_classes = dataset.num_classes
    if not isinstance(dataset, HasLabels) or num_classes is None or not len(dataset.labels):
        return None
    labels = dataset.labels
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < NO_LABEL or highest >= num_classes:
        wrong = highest if highest >= num_classes else lowest
        raise DataError(
            f"{split}: a label is {wrong}, but there are {num_classes} classes, 0 to {num_classes - 1}."
        )
    if highest < 0:
        return None
    return torch.bincount(labels[labels >= 0], minlength=num_classes).tolist()


def is_labelled(dataset: ImageDataset) -> bool:
    """Return whether a split has labels; one that does not list them has, if it has classes."""
    if dataset.num_classes is None or not isinstance(dataset, HasLabels):
        return dataset.num_classes is not None
    return bool((dataset.labels >= 0).any())


def split_notes(train: ImageDataset, test: ImageDataset) -> list[str]:
    """Return what a reader of results must know of the splits, and refuse a test split of other classes.

    Raises:
        DataError: if the test split is labelled by other classes than training.
    """
    if test.num_classes is not None and (test.num_classes, test.class_names) != (
        train.num_classes,
        train.class_names,
    ):
        raise DataError(
            f"the test split has other classes than training: {describe_classes(test.class_names)} there, "
            f"{describe_classes(train.class_names)} in training. Give both splits the same classes, or set "
            "data.labels: false."
        )
    if train.num_classes is None:
        return []
    if not is_labelled(test):
        return ["the test split is unlabelled: likelihoods of its images are unconditional"]
    counts = count_by_class(test, "test")
    if counts is None:
        return []
    notes = []
    empty = sum(count == 0 for count in counts)
    if empty:
        notes.append(f"{empty} of {len(counts)} classes have no test image")
    if max(counts) > BALANCED * min(counts):
        notes.append(
            f"samples are drawn in equal numbers of each class, but the test split holds {min(counts):,} to "
            f"{max(counts):,}: distances such as FID compare unlike mixtures"
        )
    return notes


def describe_classes(names: list[str] | None) -> str:
    """Return the number of classes and the names of the first ones."""
    return "unlabelled" if names is None else f"{len(names)} classes: {shortened(names)}"
