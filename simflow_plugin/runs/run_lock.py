"""One writer of a run directory: a lock of the kernel, and the name of its owner in the lock's file.

    .lock    `process 123 on host` while a run trains; empty afterwards

Where the file system has no locks, the name alone refuses a second writer. The file may be removed, or taken by another
process, while the first goes on: `check` finds that before each write.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from pathlib import Path

from simflow_plugin.descriptor_lock import SAFELY, NoLocks, read_start, replace_content, try_to_lock
from simflow_plugin.errors import RunDirectoryError

log = logging.getLogger(__name__)

ORPHANS_LIVE = 15.0
"""Seconds. Processes that read images inherit the lock; after their parent was killed torch ends them within 5."""


class RunLock:
    """The lock of a run directory that is there; the kernel drops it when the process ends, however it ends.

    Raises:
        RunDirectoryError: if another process holds it.
        OSError: if the file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._file = folder, folder / ".lock"
        self._owner = _this_process(os.getpid())
        self._descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | SAFELY, 0o666)
        try:
            self._take()
            replace_content(self._descriptor, f"{self._owner}\n".encode())
        except BaseException:
            os.close(self._descriptor)
            raise

    def check(self) -> None:
        """Raise `RunDirectoryError` if the lock is no longer this process's."""
        if not self._is_ours():
            raise RunDirectoryError(
                f"{self._file}: was removed or taken by another process while this one held it. Two processes may be "
                "writing this directory: this one writes no more. Stop the other, and run the command again."
            )

    def release(self) -> None:
        """Give the lock back; a finished run does not name the machine it was trained on."""
        if self._is_ours():
            replace_content(self._descriptor, b"")
        os.close(self._descriptor)

    def _is_ours(self) -> bool:
        held = os.fstat(self._descriptor)
        try:
            there = os.stat(self._file)
        except OSError:
            return False
        is_same = (held.st_dev, held.st_ino) == (there.st_dev, there.st_ino)
        return is_same and _owner(self._descriptor) == self._owner

    def _take(self) -> None:
        try:
            if not _take_lock(self._descriptor):
                raise self._refused("Wait for it, stop it")
        except NoLocks as error:
            owner = _owner(self._descriptor)
            if owner not in ("", self._owner) and not _is_dead(owner):
                raise self._refused(f"Stop it, remove {self._file} if it has ended") from error
            log.warning(
                "%s: this file system has no locks; a second writer is told from its name in .lock alone.",
                self._folder,
            )

    def _refused(self, remedy: str) -> RunDirectoryError:
        owner = _owner(self._descriptor) or "unknown"
        return RunDirectoryError(
            f"{self._folder}: another process is writing it ({owner}). "
            f"{remedy}, or name another directory with --out."
        )


def _this_process(number: int) -> str:
    return f"process {number} on {socket.gethostname()}"


def _owner(descriptor: int) -> str:
    return read_start(descriptor, 200).decode(errors="replace").strip()


def _take_lock(descriptor: int) -> bool:
    """Take the lock at once, or wait while its holders are children of a process of this machine that has died.

    Returns:
        False if a process that lives holds it.
    """
    deadline = time.monotonic() + ORPHANS_LIVE
    while not try_to_lock(descriptor):
        if not _is_dead(_owner(descriptor)) or time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _is_dead(owner: str) -> bool:
    words = owner.split()
    if len(words) < 2 or not words[1].isdecimal() or owner != _this_process(int(words[1])):
        return False  # of another machine, or not written yet
    import psutil  # on Windows signal 0 of `os.kill` is Ctrl-C

    try:
        return not psutil.pid_exists(int(words[1]))
    except OverflowError:  # no process has such a number: the file is damaged
        return True
