"""Folders that are there whole, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

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
        aside = folder.parent / f".{folder.name}.{os.getpid()}.part"
        aside.mkdir()
        try:
            write(aside)
            for path in aside.iterdir():  # safetensors makes its files readable to their owner only
                path.chmod(aside.stat().st_mode & 0o666)
            os.replace(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise RunDirectoryError(f"{folder}: cannot be written: {error}") from error
