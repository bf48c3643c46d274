"""The kernel's exclusive lock on an open file, by `filelock`: `flock` on Linux and macOS, `LockFileEx` on Windows.

A process that ends, however it ends, drops it. The file itself is opened, read, compared and closed by the caller.
"""

from __future__ import annotations

import errno
import os

from filelock import lock_descriptor

NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL)
"""Errors of a lock on a file system that has none."""

SAFELY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""Flags of `os.open`: neither a link nor a named pipe, at which opening would wait, is followed."""


class NoLocks(OSError):
    """The file system has no locks."""


def try_to_lock(descriptor: int) -> bool:
    """Take the lock of an open file at once; False if another one holds it.

    Raises:
        NoLocks: where the file system has none.
        OSError: if locking fails otherwise.
    """
    try:
        return lock_descriptor(descriptor, blocking=False)
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise NoLocks(error.errno, str(error)) from error
        raise


def read_start(descriptor: int, size: int) -> bytes:
    """Return the first bytes of an open file; none where another process's lock forbids it, as on Windows."""
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        return os.read(descriptor, size)
    except PermissionError:
        return b""


def replace_content(descriptor: int, content: bytes) -> None:
    """Replace what an open file holds by a few bytes."""
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    if content:
        os.write(descriptor, content)
