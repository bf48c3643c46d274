"""Files and folders written in one piece, with the permissions of the umask, and digests of what they hold.

    with replacing(path, DataError) as part:
        save_file(tensors, part)

Readers see the old content or the new one. The part lies in the same folder, is flushed to the disk, and gets its name
by a rename; where anything fails, it is removed and the old file stays.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError

from safetensors import SafetensorError

from simflow_plugin.errors import RunDirectoryError, SimflowError


@contextmanager
def replacing(path: Path, error: type[SimflowError] | None = None) -> Iterator[Path]:
    """Give a path for the new content of `path`, a file or a new folder, and rename it at the end of the block.

    Processes that write the same file at once do no harm: each has a part, and the last one wins.

    Args:
        path: its folder is made if need be.
        error: raised in place of an `OSError` or `SafetensorError`, naming `path`; None lets these pass.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        give_usual_mode(part)
        for written in (*part.rglob("*"), part):
            _flush(written)
        os.replace(part, path)
        _flush(path.parent)
    except (OSError, SafetensorError) as problem:
        if error is None or isinstance(problem, URLError):  # an OSError of the source, not of the file
            raise
        raise error(f"{path}: cannot be written: {problem}") from problem
    finally:
        shutil.rmtree(part, ignore_errors=True)
        part.unlink(missing_ok=True)


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """Give a folder to fill, which gets the name `folder` at the end of the block.

    Args:
        folder: new or empty.
    Raises:
        RunDirectoryError: if the folder exists and is not empty, or cannot be written.
    """
    check_new_folder(folder)
    with replacing(folder, RunDirectoryError) as part:
        part.mkdir()
        yield part


def write_text_atomically(path: Path, text: str) -> None:
    """Replace a file's content by `text`, in UTF-8."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


LARGEST_JSON = 1 << 26
"""Bytes; our own files of JSON are far smaller."""


def read_json_object(path: Path, error: type[SimflowError]) -> dict[str, Any]:
    """Read a file that holds one JSON object, whatever it was replaced by.

    Args:
        path: of the file; a named pipe, which would never end, is not opened.
        error: raised for everything that is none.
    """
    try:
        if not path.is_file():
            raise error(f"{path}: {'is no plain file' if path.exists() else 'is missing'}")
        if (size := path.stat().st_size) > LARGEST_JSON:
            raise error(f"{path}: has {size} bytes, at most {LARGEST_JSON} are read")
        content = json.loads(path.read_bytes())
    except OSError as problem:
        raise error(f"{path}: cannot be read ({problem.strerror}). Check its permissions") from problem
    except RecursionError:
        raise error(f"{path}: is nested too deep to be one of ours") from None
    except ValueError as problem:
        raise error(f"{path}: is not JSON ({problem})") from problem
    if not isinstance(content, dict):
        raise error(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def check_new_folder(folder: Path) -> None:
    """Refuse a place for a folder before the work for it is done.

    Raises:
        RunDirectoryError: if it is a file, or a folder with something in it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunDirectoryError(
            f"{folder}: exists and is not empty; choose another --out, or remove it first"
        )


def give_usual_mode(path: Path) -> None:
    """Give a file, or a folder and the files in it, the permissions that the umask gives to new ones.

    safetensors makes its files readable to their owner only: a colleague could not sample.
    """
    mode = _mode_of_new_files(path.parent)
    if not path.is_dir():
        path.chmod(mode)
        return
    for inner in path.iterdir():
        inner.chmod(mode | _search_bits(mode) if inner.is_dir() else mode)
    path.chmod(mode | _search_bits(mode))


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error says that the disk is full, or a quota or a limit on file sizes reached."""
    messages = ("No space left", "Disk quota exceeded", "File too large")
    try:
        number, text = getattr(error, "errno", None), str(error)
    except BaseException:  # an exception of a plugin's class, whose own code fails
        return False
    return number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or any(message in text for message in messages)


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk; Windows opens no folder, and writes its names."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()  # Python 3.10 has no hashlib.file_digest
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def text_digest(text: str) -> str:
    """Return 16 hexadecimal digits that name a text: a key of caches."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _search_bits(mode: int) -> int:
    """Return the bits by which whoever may read a folder may enter it."""
    return ((mode >> 2) & 0o111) | 0o100


def _mode_of_new_files(folder: Path) -> int:
    """Return the permissions that this process gives to a file it opens in `folder`."""
    probe = folder / f".mode.{secrets.token_hex(4)}"
    try:
        probe.touch()
        return probe.stat().st_mode & 0o666
    finally:
        probe.unlink(missing_ok=True)
