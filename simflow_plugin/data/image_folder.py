"""A folder of images: one subfolder per class or none, `train/` and `val/` (or `test/`) or one for all.

root/cat/1.jpg           labelled, split by share
root/1.jpg               unlabelled, split by share
root/train/cat/1.jpg     labelled, its own split
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import Field

from simflow_plugin import registry
from simflow_plugin.contracts import DataContext
from simflow_plugin.data.disk_cache import file_facts, fingerprint
from simflow_plugin.data.image_files import FileDataset, FileOptions, choose_labels, own_or_held_out
from simflow_plugin.data.images import IMAGE_SUFFIXES, decode_image
from simflow_plugin.data.split import check_split
from simflow_plugin.errors import DataError

TRAIN_FOLDER = "train"
TEST_FOLDERS = ("test", "val", "valid", "validation")


@registry.DATASETS.register("image_folder")
class ImageFolder(FileDataset):
    """Images below `root`.

    Raises:
        DataError: if the folder is missing or holds no image, or if labels are asked for that are not there.
    """

    class Options(FileOptions):
        root: str = Field(description="the folder")

    def __init__(self, options: Options, context: DataContext) -> None:
        root = Path(options.root).expanduser()
        train, test = split_folders(root)
        base = test if test is not None and check_split(context.split) == "test" else train
        paths = list_images(base)
        # Numbered by the training folder, so that a class without test images does not shift the others.
        class_names = _class_names(paths if base == train else list_images(train))
        labels = choose_labels(str(base), _numbers(base, paths, class_names, options.labels), options.labels)
        rows, targets = own_or_held_out(root, len(paths), labels, context.split, options, test is not None)
        self.root = base
        names = class_names if labels is not None else None
        super().__init__([paths[row] for row in rows], targets, names, context.image_size, options)

    def read_image(self, index: int) -> Image.Image:
        path = self.root / self.names[index]
        return decode_image(path, str(path))

    def content_facts(self) -> dict[str, Any]:
        files = [file_facts(self.root / name) for name in self.names]
        return super().content_facts() | {
            "root": str(self.root.resolve()),
            "files": fingerprint({"files": files}),
        }

    def describe(self, index: int) -> str:
        return str(self.root / self.names[index])


def split_folders(root: Path) -> tuple[Path, Path | None]:
    """Return the training folder and the test folder; None for the latter if a share is to be held out.

    Raises:
        DataError: if `root` is not a folder.
    """
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise DataError(f"{root}: {what}. Set data.root to a folder of images.")
    if not (root / TRAIN_FOLDER).is_dir():
        return root, None
    found = [root / name for name in TEST_FOLDERS if (root / name).is_dir()]
    return root / TRAIN_FOLDER, found[0] if found else None


def list_images(base: Path) -> list[str]:
    """Return the paths of all images below `base`, relative to it, sorted.

    Raises:
        DataError: if there is none.
    """
    found = []
    for folder, _, files in os.walk(base, followlinks=True):
        inside = os.path.relpath(folder, base)
        prefix = "" if inside == "." else inside + os.sep
        found += [prefix + name for name in files if _is_image(name)]
    if not found:
        raise DataError(
            f"{base}: no images below it. Looked for files ending in {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    return sorted(found)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _class_names(paths: list[str]) -> list[str]:
    return sorted({_class_of(path) for path in paths})


def _class_of(path: str) -> str:
    head, separator, _ = path.partition(os.sep)
    return head if separator else ""


def _numbers(base: Path, paths: list[str], class_names: list[str], wanted: bool | str) -> list[int] | None:
    """Return each image's class number, or None if the folder is flat or labels are not wanted."""
    loose = [path for path in paths if not _class_of(path)]
    if wanted is False or len(loose) == len(paths):
        return None
    if loose:
        raise DataError(
            f"{base}: {len(loose)} images lie beside class folders, such as {loose[0]}. Move them into a "
            "class folder, or set data.labels: false."
        )
    number_of = {name: number for number, name in enumerate(class_names)}
    unknown = sorted({_class_of(path) for path in paths} - set(number_of))
    if unknown:
        raise DataError(f"{base}: class folder `{unknown[0]}` is not among the training classes.")
    return [number_of[_class_of(path)] for path in paths]
