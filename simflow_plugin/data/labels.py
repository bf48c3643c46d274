"""Labels as a source writes them -> class numbers 0 .. K - 1, and the names of the K classes.

The classes are those that training images have: ids sorted as numbers, texts as words, or the order the source
declares. So ids with gaps (the ImageNet ids of a ten-class subset) size no table of classes never seen; the list of
names is the map, and is stored with the run. A test split is numbered by the classes of training.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from simflow_plugin.contracts import NO_LABEL
from simflow_plugin.errors import DataError

Key = int | str
"""A label in the words of the source: an id, a name, or `NO_LABEL`."""
Wanted = bool | Literal["auto"]

MAX_NAME_LENGTH = 200
"""Characters. Longer texts are captions, not classes."""
WHOLE_NUMBER = re.compile(r"[+-]?\d{1,18}")
REMEDY = "Mend or remove it, or set data.labels: false"


def parse_label(value: Any, record: str, texts: bool = True) -> Key:
    """Return a label as an id or a name.

    Args:
        record: names the image in messages.
        texts: whether words are class names here.
    Raises:
        DataError: for null, a truth value, a float, a list, a mapping, a negative id other than `NO_LABEL`, an empty
            or over-long text.
    """
    if isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.bool_)):
        number = int(value)
        if NO_LABEL <= number < 1 << 63:
            return number
    if isinstance(value, str):
        text = value.strip()
        if WHOLE_NUMBER.fullmatch(text) and int(text) >= NO_LABEL:
            return int(text)
        if texts and text.isprintable() and 0 < len(text) <= MAX_NAME_LENGTH:
            return text
    expected = "a whole number or a class name" if texts else "a whole number"
    raise DataError(
        f"{record}: its label is {shown(value)} ({type(value).__name__}), expected {expected}. {REMEDY}."
    )


def find_classes(where: str, keys: Sequence[Key], declared: Sequence[Key] | None = None) -> list[Key]:
    """Return the label that each class number stands for, of those that training images have.

    Args:
        where: the data set, for messages.
        keys: of every training image.
        declared: the source's own order; classes without an image are left out. None: sorted.
    Raises:
        DataError: if there is one class only, or numbers and words are mixed.
    """
    seen = set(keys) - {NO_LABEL}
    if len({type(key) for key in seen}) > 1:
        examples = [next(key for key in keys if type(key) is kind and key in seen) for kind in (int, str)]
        raise DataError(
            f"{where}: some labels are numbers ({examples[0]!r}), others words ({examples[1]!r}). Use one of them, or "
            "set data.labels: false."
        )
    if len(seen) < 2:
        raise DataError(
            f"{where}: all {len(keys)} images are of one class: there is nothing to condition on. Add "
            "another class, or train without labels: data.labels: false."
        )
    return sorted(seen) if declared is None else [key for key in declared if key in seen]  # type: ignore[type-var]


def number_labels(
    where: str,
    own: Sequence[Key] | None,
    training: Sequence[Key] | None,
    wanted: Wanted,
    records: Sequence[str] = (),
    declared: Sequence[Key] | None = None,
) -> tuple[Tensor | None, list[str] | None]:
    """Number the labels of one split by the classes of training.

    Args:
        where: the data set, for messages.
        own: labels of the split's images, or None if it has none.
        training: labels of the training images; the same object where the split is cut from them.
        wanted: the option `labels`.
        records: names of the split's images, for messages.
        declared: the source's own order of classes.
    Returns:
        (N,) int64, or None for an unlabelled split; the names of the classes, or None for an unlabelled data set.
    Raises:
        DataError: if labels are wanted and missing, only some images have one, or a class is not in training.
    """
    own, training = (None if keys is None or set(keys) == {NO_LABEL} else keys for keys in (own, training))
    if wanted is False or (training is None and wanted == "auto"):
        return None, None
    if (own is None and wanted is True) or training is None:
        raise DataError(
            f"{where}: data.labels is true, but there are no labels. Add them, or set data.labels: false."
        )
    missing = [row for row, key in enumerate(own or ()) if key == NO_LABEL]
    if missing:
        example = f", such as {records[missing[0]]}" if records else ""
        raise DataError(
            f"{where}: {len(missing)} of {len(own or ())} images have no label{example}. Add them, remove the images, "
            "or set data.labels: false."
        )
    classes = find_classes(where, training, declared)
    names = [str(key) for key in classes]
    foreign = sorted({str(key) for key in set(own or ()) - set(classes)})
    if foreign:
        raise DataError(
            f"{where}: {len(foreign)} classes that no training image has: `{'`, `'.join(foreign[:12])}`. "
            f"Training has {len(names)}: {shortened(names)}. Add them to training, remove them here, or set "
            "data.labels: false."
        )
    number_of = {key: number for number, key in enumerate(classes)}
    numbers = None if own is None else torch.tensor([number_of[key] for key in own], dtype=torch.int64)
    return numbers, names


def shortened(names: Sequence[str], limit: int = 12) -> str:
    """Join names for a message, the first `limit` of them."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")


def shown(value: Any, length: int = 60) -> str:
    """Return the representation of a value of unknown size for a message."""
    text = repr(value[:length]) if isinstance(value, (str, bytes)) else repr(value)
    return text if len(text) <= length else f"{text[: length - 3]}..."
