"""A folder of images: one subfolder per class or none, `train/` and `val/` (or `test/`) or one for all.

root/cat/1.jpg           labelled, split by share
root/1.jpg               unlabelled, split by share
root/train/cat/1.jpg     labelled, its own split
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from simflow_plugin import registry
from simflow_plugin.contracts import DataContext
from simflow_plugin.data.decoding import read_image_file
from simflow_plugin.data.disk_cache import file_facts, fingerprint
from simflow_plugin.data.folder_scan import scan_folder
from simflow_plugin.data.image_files import FileDataset, ListedImages
from simflow_plugin.data.options import ImageFolderOptions
from simflow_plugin.data.split_folders import find_split_folders, refuse_splits_inside_classes
from simflow_plugin.errors import DataError


@registry.DATASETS.register("image_folder")
class ImageFolder(FileDataset):
    """Images below `root`.

    Raises:
        DataError: if the folder is missing, cannot be listed or holds no image, if it is ambiguous which folders are
            splits and which classes, or if labels are asked for that are not there.
    """

    Options = ImageFolderOptions

    def __init__(self, options: ImageFolderOptions, context: DataContext) -> None:
        root = Path(options.root).expanduser()
        folders = find_split_folders(root, options.train_folder, options.test_folder)
        base = folders.train
        if context.split == "test" and folders.test is not None:
            base = folders.test
        scan = scan_folder(base)
        if options.train_folder is None:
            refuse_splits_inside_classes(base, scan.paths)
        keys = training = class_of_each(base, scan.paths) if options.labels is not False else None
        if base != folders.train and options.labels is not False:
            # A class without test images must not shift the numbers of the others.
            training = class_of_each(folders.train, scan_folder(folders.train).paths)
        ignored = scan.ignored | {f"folders beside the splits ({name})": 1 for name in folders.unused}
        is_split = folders.test is not None
        self.root = base
        super().__init__(
            ListedImages(str(base), scan.paths, keys, training, is_split, ignored=ignored), options, context
        )

    def read_content(self, index: int) -> bytes:
        return read_image_file(self.root / self.names[index])

    def content_facts(self) -> dict[str, Any]:
        files = [file_facts(self.root / name) for name in self.names]
        return super().content_facts() | {
            "root": str(self.root.resolve()),
            "files": fingerprint({"files": files}),
        }

    def describe(self, index: int) -> str:
        return str(self.root / self.names[index])


def class_of_each(base: Path, paths: list[str]) -> list[int | str] | None:
    """Return the class folder of every image, or None if the folder is flat.

    Raises:
        DataError: if images lie beside class folders.
    """
    folders = [head if inside else "" for head, inside, _ in (path.partition(os.sep) for path in paths)]
    loose = [path for path, folder in zip(paths, folders, strict=True) if not folder]
    if len(loose) == len(paths):
        return None
    if loose:
        raise DataError(
            f"{base}: {len(loose)} images lie beside class folders, such as {loose[0]}. Move them into a "
            "class folder, or set data.labels: false."
        )
    return list(folders)
