"""A folder of images: one subfolder per class or none, `train/` and `val/` (or `test/`) or one for all.

root/cat/1.jpg           labelled, split by share
root/1.jpg               unlabelled, split by share
root/train/cat/1.jpg     labelled, its own split

`train/` alone or beside `test/`, `val/`, `valid/` or `validation/`, and nothing else that holds images: a split. No
folder with such a name: the root is one data set, and a share of it is held out. All else is refused, unless an option
decides: `Train/Test`, `training/testing`, `val/test` alone, a class that is called `train` among others.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simflow_plugin import registry
from simflow_plugin.contracts import DataContext
from simflow_plugin.data.decoding import read_image_file
from simflow_plugin.data.disk_cache import file_facts, fingerprint
from simflow_plugin.data.folder_scan import holds_images, scan_folder, visible_folders
from simflow_plugin.data.image_files import FileDataset, ListedImages
from simflow_plugin.data.options import ImageFolderOptions
from simflow_plugin.errors import DataError

TRAIN_FOLDER = "train"
TEST_FOLDERS = ("test", "val", "valid", "validation")
TRAIN_WORDS = frozenset({"train", "training", "trn", "trainset", "trainval"})
TEST_WORDS = frozenset(
    {
        *("test", "testing", "tst", "testset", "val", "valid", "validate", "validation", "valset"),
        *("dev", "eval", "evaluation", "holdout"),
    }
)
NEUTRAL_WORDS = frozenset(
    {"", "set", "data", "dataset", "split", "image", "images", "img", "imgs", "held", "out"}
)


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


@dataclass(frozen=True)
class SplitFolders:
    """Folders of the splits.

    Args:
        train: folder of the training images.
        test: folder of the test images, or None if a share is to be held out.
        unused: folders beside them that hold images and are in no split.
    """

    train: Path
    test: Path | None
    unused: tuple[str, ...] = ()


def find_split_folders(root: Path, train_folder: str | None, test_folder: str | None) -> SplitFolders:
    """Return the folders of the two splits.

    Args:
        root: folder of the data set.
        train_folder: below it, `.` for the root itself; None: found by its name.
        test_folder: below it; None: found by its name beside `train`.
    Raises:
        DataError: if a folder is missing, or it is ambiguous which are splits.
    """
    _require_folder(root, "data.root (or --data-root)")
    if train_folder is None and test_folder is None:
        return _found_by_name(root)
    train = root / (train_folder if train_folder is not None else TRAIN_FOLDER)
    _require_folder(train, "data.train_folder")
    test = root / test_folder if test_folder is not None else None
    if test is not None:
        _require_folder(test, "data.test_folder")
        if _lies_in(test, train) or _lies_in(train, test):
            raise DataError(f"{test}: data.test_folder and data.train_folder {train} lie in each other.")
    if train.resolve() == root.resolve():
        return SplitFolders(root, None)
    used = {path.resolve() for path in (train, test) if path is not None}
    beside = [name for name in visible_folders(root) if (root / name).resolve() not in used]
    return SplitFolders(train, test, tuple(name for name in beside if holds_images(root / name)))


def refuse_splits_inside_classes(base: Path, paths: list[str]) -> None:
    """Refuse class folders that each hold splits: `cat/train/1.png`, `cat/test/2.png`.

    Raises:
        DataError: if images lie in second-level folders that are called like training and like test splits.
    """
    second = {parts[1]: path for path in paths if len(parts := path.split("/")) > 2}
    trains, tests = (
        [name for name in second if is_called(name, words)] for words in (TRAIN_WORDS, TEST_WORDS)
    )
    if trains and tests:
        raise DataError(
            f"{base}: class folders hold splits ({second[trains[0]]}, {second[tests[0]]}): test images would be "
            f"trained on. Move them to {TRAIN_FOLDER}/<class>/ and {TEST_FOLDERS[0]}/<class>/; to train on all of "
            "them, set data.train_folder: ."
        )


def is_called(name: str, words: frozenset[str]) -> bool:
    """Return whether a folder is called one of `words`, beside neutral ones: `Train`, `val2017`, `test_images`."""
    parts = set(re.split(r"[^a-z]+", name.lower()))
    return bool(parts & words) and not parts - words - NEUTRAL_WORDS


def _found_by_name(root: Path) -> SplitFolders:
    folders = visible_folders(root)
    called = [name for name in folders if is_called(name, TRAIN_WORDS) or is_called(name, TEST_WORDS)]
    called = [name for name in called if holds_images(root / name)]
    if not called:
        return SplitFolders(root, None)
    others = [name for name in folders if name not in called and holds_images(root / name)]
    known = {TRAIN_FOLDER, *TEST_FOLDERS}
    if others or TRAIN_FOLDER not in called or not known.issuperset(called):
        raise _ambiguous(root, called, others)
    tests = [name for name in TEST_FOLDERS if name in called]
    if tests and (root / tests[0]).resolve() == (root / TRAIN_FOLDER).resolve():
        raise DataError(
            f"{root / tests[0]}: leads to {TRAIN_FOLDER}: it would be tested on what was trained on."
        )
    return SplitFolders(root / TRAIN_FOLDER, root / tests[0] if tests else None, tuple(tests[1:]))


def _ambiguous(root: Path, called: list[str], others: list[str]) -> DataError:
    beside = f" beside {', '.join(others[:3])}{' and others' if len(others) > 3 else ''}" if others else ""
    train = next((name for name in called if is_called(name, TRAIN_WORDS)), None)
    test = next((name for name in called if is_called(name, TEST_WORDS)), None)
    splits = [f"data.train_folder: {train}"] if train else ["data.train_folder: FOLDER"]
    splits += [f"data.test_folder: {test}"] if test else []
    return DataError(
        f"{root}: holds {', '.join(called)}{beside}: splits or classes? If they are splits, set "
        f"{' and '.join(splits)}; if every folder is a class, set data.train_folder: ."
    )


def _require_folder(path: Path, option: str) -> None:
    if not path.is_dir():
        what = "is a file, not a folder" if path.exists() else "does not exist"
        raise DataError(f"{path}: {what}. Set {option} to a folder of images.")


def _lies_in(inner: Path, outer: Path) -> bool:
    return outer.resolve() in (inner.resolve(), *inner.resolve().parents)
