"""Comparison of a run's data then and now: other classes are refused, other images are reported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simflow_plugin.contracts import ImageDataset, NamesImages
from simflow_plugin.data.labels import shortened
from simflow_plugin.data.order import sample_rows
from simflow_plugin.data.summary import NUM_HASHED, content_digest, describe_classes
from simflow_plugin.errors import DataError


def data_changes(state: Mapping[str, Any], train: ImageDataset) -> list[str]:
    """Compare the training split with the one that a run was trained on.

    A share that is held out by seed is drawn anew when images are added or removed.

    Args:
        state: of the run's checkpoint; older ones lack some of it.
        train: the training split now.
    Returns:
        what has changed of the images, for the log or the notes of a result.
    Raises:
        DataError: if classes were renamed, added, removed or reordered: a class number means another class now.
    """
    _refuse_other_classes(state, train)
    before = state.get("num_images")
    if before not in (None, len(train)):
        return [
            f"the training split has {len(train):,} images now and had {before:,} when the run was trained: the "
            "held-out split may hold images that it was trained on"
        ]
    stored = state.get("content_digests")
    if not stored:
        return []
    rows = sample_rows(len(train), NUM_HASHED)
    changed = [row for row, digest in zip(rows, stored, strict=False) if content_digest(train, row) != digest]
    if not changed:
        return []
    example = f", such as {train.describe(changed[0])}" if isinstance(train, NamesImages) else ""
    return [
        f"{len(changed)} of {len(rows)} training images looked at have another content or label than when the run was "
        f"trained{example}"
    ]


def _refuse_other_classes(state: Mapping[str, Any], train: ImageDataset) -> None:
    names, now = state.get("class_names"), train.class_names
    if "num_classes" in state and state["num_classes"] != train.num_classes:
        how = "another number of classes"
    elif names is None or now is None or list(names) == list(now):
        return
    else:
        how = "the same classes in another order" if set(names) == set(now) else "classes of other names"
    then = describe_classes(names) if names is not None else f"{state.get('num_classes')} classes"
    difference = ""
    if names is not None and now is not None and set(names) != set(now):
        gone, new = sorted({*names} - {*now}), sorted({*now} - {*names})
        difference = f" Gone: {shortened(gone) or 'none'}; new: {shortened(new) or 'none'}."
    raise DataError(
        f"the data has {how} now, and the run's class numbers mean what they meant when it was trained. Then: {then}. "
        f"Now: {describe_classes(now)}.{difference} Restore the data that the run was trained on, or train a new run."
    )
