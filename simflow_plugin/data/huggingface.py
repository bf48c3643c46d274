"""A data set of the Hugging Face `datasets` library, from its hub or from a folder written by `save_to_disk`.

Needs `pip install simflow-plugin[datasets]`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import Field

from simflow_plugin import registry
from simflow_plugin.contracts import DataContext
from simflow_plugin.data.image_files import FileDataset, FileOptions, choose_labels, own_or_held_out
from simflow_plugin.data.images import CorruptImage, decode_image
from simflow_plugin.data.split import check_split
from simflow_plugin.errors import DataError


@registry.DATASETS.register("huggingface")
class HuggingFaceImages(FileDataset):
    """Images of a column of a Hugging Face data set.

    Raises:
        DataError: if the library is not installed, the data cannot be had, or it has no such column.
    """

    class Options(FileOptions):
        path: str = Field(description="name on the hub, or a folder written by save_to_disk")
        subset: str | None = Field(None, description="the hub's configuration name")
        train_split: str = "train"
        test_split: str | None = Field(None, description="null: hold a share of the training split out")
        image_column: str | None = Field(None, description="null: the first column of images")
        label_column: str | None = Field(None, description="null: the first column of class labels")

    def __init__(self, options: Options, context: DataContext) -> None:
        own = options.test_split is not None
        is_test = check_split(context.split) == "test"
        table = load_table(
            options.path, options.subset, (options.test_split if is_test else None) or options.train_split
        )
        self.image_column = _column(table, options.path, options.image_column, "Image", "image_column")
        label_column = None
        if options.labels is not False:
            label_column = _column(
                table, options.path, options.label_column, "ClassLabel", "label_column", options.labels
            )
        numbers = list(table[label_column]) if label_column is not None else None
        labels = choose_labels(options.path, numbers, options.labels)
        rows, targets = own_or_held_out(options.path, len(table), labels, context.split, options, own)
        self.path = options.path
        self.table = _undecoded(table.select(rows), self.image_column)
        class_names = None
        if labels is not None:
            feature = table.features[label_column]
            class_names = list(getattr(feature, "names", None) or map(str, range(1 + int(labels.max()))))
        super().__init__([str(row) for row in rows], targets, class_names, context.image_size, options)

    def read_image(self, index: int) -> Image.Image:
        cell = self.table[index][self.image_column]
        content = cell.get("bytes") or (Path(cell["path"]) if cell.get("path") else None)
        if content is None:
            raise CorruptImage(f"{self.describe(index)}: an empty cell")
        return decode_image(content, self.describe(index))

    def content_facts(self) -> dict[str, Any]:
        # The library's own fingerprint changes with the data and with every operation on them.
        return super().content_facts() | {"table": self.table._fingerprint}

    def describe(self, index: int) -> str:
        return f"{self.path}[{self.names[index]}]"


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


def _column(
    table: Any, path: str, wanted: str | None, kind: str, option: str, needed: bool | str = True
) -> str | None:
    """Return the column asked for, or the first one of a kind."""
    if wanted is not None:
        if wanted not in table.column_names:
            raise DataError(
                f"{path}: data.{option} `{wanted}` is not a column. Known: {', '.join(table.column_names)}."
            )
        return wanted
    for name, feature in table.features.items():
        if type(feature).__name__ == kind:
            return name
    if needed is not True:
        return None
    raise DataError(
        f"{path}: no column of type {kind}. Set data.{option}. Known: {', '.join(table.column_names)}."
    )


def _undecoded(table: Any, column: str | None) -> Any:
    """Ask for bytes instead of decoded images: a corrupt one is then found by our decoder, and named."""
    import datasets

    return table.cast_column(column, datasets.Image(decode=False))
