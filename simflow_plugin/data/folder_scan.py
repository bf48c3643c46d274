"""The image files below a folder: which are taken, and how many of which kind are left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from simflow_plugin.data.image_formats import is_image_name, known_endings, suffix_of, unread_kind
from simflow_plugin.errors import DataError

SYSTEM_FOLDERS = frozenset(
    {
        *("@eadir", "@recycle", "#recycle", "$recycle.bin", "__macosx", "__pycache__", "lost+found"),
        *("system volume information", "found.000", "cvs"),
    }
)
SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r"})

HIDDEN_FOLDER, HIDDEN_FILE = "hidden or system folders", "hidden or system files"
REACHED_TWICE, NO_FILE = "reached twice (links)", "links to nothing, FIFOs or devices"


@dataclass
class FolderScan:
    """Files and folders below a folder.

    Args:
        paths: of the images, relative to the folder, sorted; every file once.
        ignored: number of entries left out, by kind.
    """

    paths: list[str] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Found:
    path: str
    is_linked: bool  # reached through a symbolic link
    identity: tuple[int, int]  # device and inode


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is none of the user's images: hidden, or made by the system."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS or name.lower() in SYSTEM_FILES


def visible_folders(base: Path) -> list[str]:
    """Return the names of the folders in `base` that are not hidden, sorted.

    Raises:
        DataError: if it cannot be listed.
    """
    return sorted(entry.name for entry in _entries(base) if _is_folder(entry) and not is_hidden(entry.name))


def holds_images(folder: Path) -> bool:
    """Return whether there is an image somewhere below `folder`."""
    return next(_walk(folder, "", _identity(folder), (), Counter()), None) is not None


def scan_folder(base: Path) -> FolderScan:
    """Find the images below `base`; symbolic links are followed.

    Raises:
        DataError: if there is none, a folder cannot be listed, or a link leads back to a folder it lies in.
    """
    scan = FolderScan()
    by_identity: dict[tuple[int, int], list[_Found]] = {}
    for found in _walk(base, "", _identity(base), (), scan.ignored):
        by_identity.setdefault(found.identity, []).append(found)
    for same in by_identity.values():
        _refuse_two_classes(base, same)
        scan.paths.append(min(same, key=lambda found: (found.is_linked, found.path)).path)
        if len(same) > 1:
            scan.ignored[REACHED_TWICE] += len(same) - 1
    if not scan.paths:
        left_out = f" {describe_ignored(scan.ignored)} left out." if scan.ignored else ""
        raise DataError(
            f"{base}: no images below it.{left_out} Looked for files ending in {known_endings()}."
        )
    scan.paths.sort()
    return scan


def describe_ignored(ignored: Counter[str] | dict[str, int]) -> str:
    """Return the counts by kind in one line, the most frequent first."""
    return ", ".join(
        f"{count:,} {kind}" for kind, count in sorted(ignored.items(), key=lambda item: -item[1])
    )


def _refuse_two_classes(base: Path, same: list[_Found]) -> None:
    """Refuse one file under two classes: its label would be ambiguous."""
    by_class = {found.path.split(os.sep)[0]: found.path for found in same if os.sep in found.path}
    if len(by_class) > 1:
        first, second = sorted(by_class.values())[:2]
        raise DataError(
            f"{base}: {first} and {second} are one file, reached through a link, in two classes. Remove one of them."
        )


def _walk(
    base: Path,
    inside: str,
    identity: tuple[int, int],
    above: tuple[tuple[int, int], ...],
    ignored: Counter[str],
) -> Iterator[_Found]:
    """Yield the images of a folder and of those below it, and count what is left out."""
    is_linked = bool(above) and (base / inside).is_symlink()
    for entry in _entries(base / inside):
        path = f"{inside}{os.sep}{entry.name}" if inside else entry.name
        if is_hidden(entry.name):
            ignored[HIDDEN_FOLDER if _is_folder(entry) else HIDDEN_FILE] += 1
        elif _is_folder(entry):
            below = _identity(base / path)
            if below in (*above, identity):
                raise DataError(
                    f"{base / path}: a link to a folder that it lies in: its images would be found without end. "
                    "Remove the link."
                )
            for found in _walk(base, path, below, (*above, identity), ignored):
                yield _Found(found.path, found.is_linked or is_linked, found.identity)
        elif not is_image_name(entry.name):
            ignored[unread_kind(suffix_of(entry.name))] += 1
        elif not (os.path.isfile(entry) if entry.is_symlink() else entry.is_file()):
            ignored[NO_FILE] += 1
        else:
            # The inode is known from the listing; only a link must be looked up.
            same = _identity(base / path) if entry.is_symlink() else (identity[0], entry.inode())
            yield _Found(path, is_linked or entry.is_symlink(), same)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be listed: {error.strerror or error}. Mend its permissions, or remove it."
        ) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # `DirEntry.is_dir` raises for links that lead to each other; without a link it asks nothing of the disk.
    return os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()


def _identity(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be looked up: {error.strerror or error}.") from error
    return status.st_dev, status.st_ino
