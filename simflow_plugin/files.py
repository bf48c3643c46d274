"""Files and folders that are there whole, or not at all, and that others may read as any file of this user."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from simflow_plugin.errors import RunDirectoryError


def check_new_folder(folder: Path) -> None:
    """Refuse a place for a folder before the work for it is done.

    Raises:
        RunDirectoryError: if it is a file, or a folder with something in it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunDirectoryError(
            f"{folder}: exists and is not empty; choose another --out, or remove it first"
        )


def write_new_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside `folder`, then give it its name.

    Args:
        folder: new or empty.
        write: fills the folder that it is given.
    Raises:
        RunDirectoryError: if the folder exists and is not empty, or cannot be written.
    """
    check_new_folder(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
        try:
            write(aside)
            give_usual_mode(aside)
            os.replace(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise RunDirectoryError(f"{folder}: cannot be written: {error}") from error


def give_usual_mode(folder: Path) -> None:
    """Give a folder and the files in it the permissions of what this process makes otherwise, by its umask.

    safetensors makes its files readable to their owner only, and so does `tempfile`: a colleague could not sample.
    """
    mode = mode_of_new_files(folder)
    for path in folder.iterdir():
        path.chmod(mode)
    folder.chmod(mode | ((mode >> 2) & 0o111) | 0o100)  # whoever may read a folder may enter it


def mode_of_new_files(folder: Path) -> int:
    """Return the permissions that this process gives to a file it opens in `folder`."""
    probe = folder / f".mode.{os.getpid()}"
    try:
        probe.touch()
        return probe.stat().st_mode & 0o666
    finally:
        probe.unlink(missing_ok=True)
