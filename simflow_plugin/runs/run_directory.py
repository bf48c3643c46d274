"""The directory of a run: all of its files, and none outside it.

config.yaml  data.json  environment.json  metrics.jsonl  samples/step_*.png  checkpoints/step_*/  [averages/step_*/]
evaluations/<key>/  report.html  summary.json
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from simflow_plugin.config.loading import read_run_config
from simflow_plugin.config.schema import RunConfig
from simflow_plugin.errors import RunDirectoryError, SimflowError, TrainingError
from simflow_plugin.files import write_text_atomically
from simflow_plugin.runs.checkpoints import is_disk_full
from simflow_plugin.runs.environment import read_environments

log = logging.getLogger(__name__)

SAFE_TO_CHANGE = (
    "name",
    "tracker",
    "sampling",
    "evaluation",
    "training.steps",
    "training.num_workers",
    "training.compile",
    "training.log_every",
    "training.sample_every",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.keep_every",
    "training.max_bad_steps",
    "training.ema.snapshot_every",
)
"""Keys (and sections) that may change on resume with --allow-changed: none of them changes what a step computes,
except `training.steps`, which moves the end of a cosine schedule."""


ORPHANS_LIVE = 15.0
"""Seconds. Processes that read images inherit the lock; after their parent was killed torch ends them within 5."""

NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL)
"""What `flock` fails with on a file system that has no locks."""


class RunDirectory:
    """Paths of a run directory, and what may be done with it."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.metrics_file = self.path / "metrics.jsonl"
        self.summary_file = self.path / "summary.json"
        self.data_file = self.path / "data.json"
        self.environment_file = self.path / "environment.json"
        self.report_file = self.path / "report.html"
        self.samples = self.path / "samples"
        self.checkpoints = self.path / "checkpoints"

    def prepare(self, config: RunConfig, allow_changed: list[str]) -> None:
        """Create the directory, or check that the one that is there belongs to `config`.

        Args:
            config: resolved.
            allow_changed: dotted keys that may differ from the run's own configuration.
        Raises:
            RunDirectoryError: if it holds another configuration, other files, or cannot be written.
        """
        self._refuse_foreign_folder()
        if self.config_file.exists():
            self._check_same(config, allow_changed)
        try:
            # The configuration first: it is what makes the folder ours, should the process be killed right here.
            self.path.mkdir(parents=True, exist_ok=True)
            write_text_atomically(self.config_file, config.to_yaml())
            for folder in (self.samples, self.checkpoints):
                folder.mkdir(exist_ok=True)
        except OSError as error:
            raise self._not_writable(error) from error

    def _refuse_foreign_folder(self) -> None:
        try:
            holds_others = self.path.is_dir() and any(not p.name.startswith(".") for p in self.path.iterdir())
            is_foreign = holds_others and not self.config_file.exists()
        except OSError as error:
            raise self._not_writable(error) from error
        if is_foreign:
            raise RunDirectoryError(
                f"{self.path}: holds other files but no config.yaml, so it is no run directory. Name another: --out."
            )

    def _not_writable(self, error: OSError) -> SimflowError:
        if is_disk_full(error):
            return TrainingError(
                f"{self.path}: the disk is full ({error.strerror}). Free some space and run the same command again."
            )
        return RunDirectoryError(
            f"{self.path}: cannot be written ({error.strerror}). Name another with --out."
        )

    def _check_same(self, config: RunConfig, allow_changed: list[str]) -> None:
        for key in allow_changed:
            if not _is_below(key, SAFE_TO_CHANGE):
                raise RunDirectoryError(
                    f"--allow-changed {key}: not a key that may change within a run. "
                    f"These may: {', '.join(SAFE_TO_CHANGE)}."
                )
        old = read_run_config(self.config_file)
        changed = differing_keys(old.model_dump(mode="json"), config.model_dump(mode="json"))
        refused = {key: values for key, values in changed.items() if not _is_below(key, allow_changed)}
        if refused:
            listing = "; ".join(f"{key}: {was!r} there, {now!r} now" for key, (was, now) in refused.items())
            raise RunDirectoryError(
                f"{self.path}: holds a run with another configuration ({listing}). Name another directory with --out, "
                "or allow keys that may change with --allow-changed KEY."
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory's lock; the kernel drops it when the process ends, however it ends.

        Raises:
            RunDirectoryError: if another process holds it, the folder holds other files but no run, or it cannot be
                written. A folder that is refused stays as it is.
            TrainingError: if the disk is full.
        """
        self._refuse_foreign_folder()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise self._not_writable(error) from error
        try:
            self._lock(descriptor)
            yield
        finally:
            os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        try:
            _take_lock(descriptor)
        except BlockingIOError as error:
            owner = _owner(descriptor) or "unknown"
            raise RunDirectoryError(
                f"{self.path}: another process is writing it ({owner}). "
                "Wait for it, stop it, or name another directory with --out."
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise self._not_writable(error) from error
            log.warning("%s: this file system has no locks; nothing refuses a second writer.", self.path)
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{_this_process(os.getpid())}\n".encode(), 0)
        except OSError as error:
            raise self._not_writable(error) from error

    def write_data_summary(self, summary: dict[str, Any]) -> None:
        """Write what was understood of the data when the run was last started, to `data.json`."""
        try:
            write_text_atomically(self.data_file, json.dumps(summary, indent=1))
        except OSError as error:
            raise self._not_writable(error) from error

    def add_environment(self, environment: dict[str, Any]) -> None:
        """Add a record to `environment.json`: what the run was started, or resumed, with."""
        records = [*read_environments(self.environment_file), environment]
        try:
            write_text_atomically(self.environment_file, json.dumps(records, indent=1) + "\n")
        except OSError as error:
            raise self._not_writable(error) from error

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the rows of metrics.jsonl; a line torn by a crash is left out."""
        rows = []
        if self.metrics_file.exists():
            for line in self.metrics_file.read_text().splitlines():
                try:
                    rows.append(json.loads(line))
                except ValueError:
                    continue  # only a line that a killed process was writing can be torn; its step is run again
        return rows

    def forget_metrics_after(self, step: int) -> None:
        """Drop rows of steps that will be run again."""
        rows = [row for row in self.read_metrics() if row["step"] <= step]
        write_text_atomically(self.metrics_file, "".join(json.dumps(row) + "\n" for row in rows))


def differing_keys(old: Any, new: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Return {dotted key: (old, new)} of the leaves that differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for key in sorted({*old, *new}):
            found |= differing_keys(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        return found
    return {} if old == new else {path: (old, new)}


def _is_below(key: str, allowed: Any) -> bool:
    return any(key == root or key.startswith(root + ".") for root in allowed)


def _this_process(number: int) -> str:
    return f"process {number} on {socket.gethostname()}"


def _owner(descriptor: int) -> str:
    return os.pread(descriptor, 200, 0).decode(errors="replace").strip()


def _take_lock(descriptor: int) -> None:
    """Take the lock at once, or wait while its holders are children of a process of this machine that has died.

    Raises:
        BlockingIOError: if a process that lives holds it.
    """
    deadline = time.monotonic() + ORPHANS_LIVE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not _is_dead(_owner(descriptor)) or time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def _is_dead(owner: str) -> bool:
    words = owner.split()
    if len(words) < 2 or not words[1].isdigit() or owner != _this_process(int(words[1])):
        return False  # of another machine, or not written yet
    try:
        os.kill(int(words[1]), 0)
    except OSError as error:
        return error.errno == errno.ESRCH
    return False
