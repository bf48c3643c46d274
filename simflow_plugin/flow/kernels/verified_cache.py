"""A folder that only this user writes, and files in it that are compared with a SHA-256 beside them before use.

Code is loaded from here. A file of somebody else, one that others may write, or one that is not what was written
counts as absent; a folder that belongs to somebody else is refused.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from simflow_plugin.descriptor_lock import SAFELY, NoLocks, try_to_lock
from simflow_plugin.files import file_digest, replacing, write_text_atomically

FOR_OWNER_ONLY = 0o077
"""Permission bits that a private folder does not have."""
WRITABLE_BY_OTHERS = 0o022
DIGEST_BYTES = 65
"""Of a digest's file: 64 hexadecimal digits and the end of the line."""


def user_cache_folder(name: str) -> Path:
    """Return $XDG_CACHE_HOME/`name`, or ~/.cache/`name`.

    A relative $XDG_CACHE_HOME is ignored, by its specification: code would come from the current folder.

    Raises:
        OSError: if the home folder is not known, or no absolute path.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not root.is_absolute():
        try:
            root = Path.home() / ".cache"
        except RuntimeError as error:
            raise OSError(f"no home folder: {error}") from error
    if not root.is_absolute():
        raise OSError(f"{root}: the home folder is no absolute path")
    return root / name


def private_folder(folder: Path) -> Path:
    """Make a folder that its owner alone may read and write, or check the one that is there.

    Raises:
        OSError: if it is a link, belongs to another user, or others may write it and that cannot be changed.
    """
    if not hasattr(os, "geteuid"):
        raise OSError(f"{folder}: this system has no owners of files to check compiled code by")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode):
        raise OSError(f"{folder}: is a link. Put a folder in its place")
    if facts.st_uid != os.geteuid():
        raise OSError(
            f"{folder}: belongs to user {facts.st_uid}, this is user {os.geteuid()}. Name another $XDG_CACHE_HOME"
        )
    if facts.st_mode & FOR_OWNER_ONLY:
        try:
            folder.chmod(0o700)
        except OSError:
            if facts.st_mode & WRITABLE_BY_OTHERS:
                raise
    return folder


def why_not_verified(path: Path) -> str | None:
    """Return why a file may not be used, or None if it is this user's and has the digest that lies beside it."""
    digest = digest_file(path)
    for file in (path, digest):
        try:
            facts = file.lstat()
        except OSError:
            return f"{file.name} is missing"
        if not stat.S_ISREG(facts.st_mode):
            return f"{file.name} is no plain file"
        if facts.st_uid != os.geteuid() or facts.st_mode & WRITABLE_BY_OTHERS:
            return f"{file.name} belongs to user {facts.st_uid} with mode {stat.S_IMODE(facts.st_mode):o}"
    if digest.stat().st_size != DIGEST_BYTES:
        return f"{digest.name} holds no SHA-256"
    if digest.read_bytes() != f"{file_digest(path)}\n".encode():
        return f"{path.name} does not match its SHA-256"
    return None


def digest_file(path: Path) -> Path:
    """Return where the digest of a file lies."""
    return path.with_name(f"{path.name}.sha256")


@contextmanager
def storing(path: Path) -> Iterator[Path]:
    """Give a path to write new content of a file to; at the end of the block it is in place, with its digest."""
    for entry in (path, digest_file(path)):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
    with replacing(path) as part:
        yield part
    path.chmod(0o600)
    write_text_atomically(digest_file(path), f"{file_digest(path)}\n")
    digest_file(path).chmod(0o600)


@contextmanager
def writing_alone(folder: Path, seconds: float) -> Iterator[None]:
    """Hold a private folder's lock, where its file system has any; the kernel drops it when the process ends.

    Raises:
        OSError: if another process holds it longer than `seconds`.
    """
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | SAFELY, 0o600)
    deadline = time.monotonic() + seconds
    try:
        with contextlib.suppress(NoLocks):
            while not try_to_lock(descriptor):
                if time.monotonic() > deadline:
                    raise OSError(f"{folder}: another process has been at work for {seconds:g} s")
                time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path, seconds: float) -> None:
    """Remove what killed processes left unfinished more than `seconds` ago."""
    for left in (*folder.glob(".*.part"), *folder.glob("build-*")):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left.lstat().st_mtime > seconds:
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
