"""A data set of the Hugging Face `datasets` library, from its hub or from a folder written by `save_to_disk`.

Needs `pip install simflow-plugin[datasets]`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simflow_plugin import registry
from simflow_plugin.contracts import NO_LABEL, DataContext
from simflow_plugin.data.decoding import CorruptImage, read_image_file
from simflow_plugin.data.image_files import FileDataset, ListedImages
from simflow_plugin.data.labels import Key, parse_label
from simflow_plugin.data.options import HuggingFaceOptions
from simflow_plugin.errors import DataError

LABEL_NAMES = ("label", "labels", "class", "class_label", "category", "target", "y")
"""Columns of numbers or words that are taken for labels where no column is declared as class labels."""


@registry.DATASETS.register("huggingface")
class HuggingFaceImages(FileDataset):
    """Images of a column of a Hugging Face data set.

    Raises:
        DataError: if the library is not installed, the data cannot be had, it has no such column, or more than one
            that could be meant.
    """

    Options = HuggingFaceOptions

    def __init__(self, options: HuggingFaceOptions, context: DataContext) -> None:
        if options.test_split == options.train_split:
            raise DataError(
                f"{options.path}: data.test_split and data.train_split are both `{options.train_split}`: it would be "
                "tested on what was trained on. Set data.test_split: null to hold a share out."
            )
        train = load_table(options.path, options.subset, options.train_split)
        table = train
        if options.test_split is not None and context.split == "test":
            table = load_table(options.path, options.subset, options.test_split)
        images = [name for name in table.column_names if type(table.features[name]).__name__ == "Image"]
        self.image_column = _only(
            table, options.path, options.image_column, images, "image_column", "of images"
        )
        keys = training = declared = None
        label_column = find_label_column(train, options.path, options.label_column, options.labels)
        if label_column is not None:
            keys = training = read_labels(table, options.path, label_column)
            if table is not train:
                training = read_labels(train, options.path, label_column)
            declared = class_label_names(train.features[label_column])
        names = [f"row {row}" for row in range(len(table))]
        is_split = options.test_split is not None
        self.path = options.path
        super().__init__(
            ListedImages(options.path, names, keys, training, is_split, declared), options, context
        )
        # Bytes in place of decoded images: a corrupt one is then found by our decoder, and named.
        import datasets

        self.table = table.select(self.rows).cast_column(self.image_column, datasets.Image(decode=False))

    def read_content(self, index: int) -> bytes:
        cell = self.table[index][self.image_column]
        if not isinstance(cell, dict) or not (cell.get("bytes") or cell.get("path")):
            raise CorruptImage(f"{self.describe(index)}: an empty cell")
        return cell["bytes"] or read_image_file(Path(cell["path"]))

    def content_facts(self) -> dict[str, Any]:
        # The library's own fingerprint changes with the data and with every operation on them.
        return super().content_facts() | {"table": self.table._fingerprint}

    def describe(self, index: int) -> str:
        return f"{self.path}: {self.names[index]}"


def load_table(path: str, subset: str | None, split: str) -> Any:
    """Load one split of a data set.

    Raises:
        DataError: if `datasets` is not installed, or the data or its split cannot be had.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "data `huggingface` needs the `datasets` package: pip install 'simflow-plugin[datasets]'."
        ) from error
    try:
        if Path(path).expanduser().is_dir() and not subset:
            found = datasets.load_from_disk(str(Path(path).expanduser()))
            return found[split] if isinstance(found, datasets.DatasetDict) else found
        return datasets.load_dataset(path, subset, split=split)
    except Exception as error:  # the library raises dozens of kinds; we only name what was asked for
        raise DataError(
            f"{path}: split `{split}` cannot be loaded: {type(error).__name__}: {error}. Check data.path, "
            "data.subset and the split, or give a folder written by save_to_disk."
        ) from error


def find_label_column(table: Any, path: str, wanted: str | None, labels: bool | str) -> str | None:
    """Return the column asked for, or the only one of class labels; None where no labels are wanted, or none is there.

    Raises:
        DataError: if there is no such column, or several that could be meant.
    """
    if labels is False:
        return None
    found = [name for name in table.column_names if class_label_names(table.features[name]) is not None]
    if not found:
        found = [name for name in table.column_names if name.lower() in LABEL_NAMES]
    if not found and wanted is None:
        return None
    return _only(table, path, wanted, found, "label_column", "of class labels")


def class_label_names(feature: Any) -> list[str] | None:
    """Return the names that a column of class labels declares, in their order; None for another column."""
    return list(feature.names) if type(feature).__name__ == "ClassLabel" else None


def read_labels(table: Any, path: str, column: str) -> list[Key]:
    """Return the label of every row: the name that its number stands for where the column declares names.

    Raises:
        DataError: if the column is missing or a row holds null, a float, a list or a number without a name.
    """
    if column not in table.column_names:
        raise DataError(
            f"{path}: no column `{column}` in this split. Known: {', '.join(table.column_names)}."
        )
    names = class_label_names(table.features[column])
    values = list(table[column])
    keys = [parse_label(value, f"{path}: row {row}, column `{column}`") for row, value in enumerate(values)]
    if names is None:
        return keys
    outside = next((key for key in keys if isinstance(key, str) or key >= len(names)), None)
    if outside is not None:
        raise DataError(f"{path}: column `{column}` holds {outside!r}, but declares {len(names)} names.")
    return [NO_LABEL if key == NO_LABEL else names[int(key)] for key in keys]


def _only(table: Any, path: str, wanted: str | None, found: list[str], option: str, kind: str) -> str:
    """Return the column asked for, or the only one found."""
    known = f"Known: {', '.join(table.column_names)}."
    if wanted is not None:
        if wanted not in table.column_names:
            raise DataError(f"{path}: data.{option} `{wanted}` is not a column. {known}")
        return wanted
    if not found:
        raise DataError(f"{path}: no column {kind}. Set data.{option}. {known}")
    if len(found) > 1:
        raise DataError(
            f"{path}: {len(found)} columns {kind}: {', '.join(found)}. Set data.{option} to one of them."
        )
    return found[0]
