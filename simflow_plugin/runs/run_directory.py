"""The directory of a run: all of its files, and none outside it.

config.yaml  run.json  data.json  environment.json  metrics.jsonl  samples/step_*.png  checkpoints/step_*/
[averages/step_*/]  evaluations/<key>/  report.html  summary.json  reconstructions.png
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from simflow_plugin.config.loading import read_run_config
from simflow_plugin.config.schema import RunConfig
from simflow_plugin.errors import CheckpointError, RunDirectoryError, SimflowError, TrainingError
from simflow_plugin.files import is_disk_full, read_json_object, write_text_atomically
from simflow_plugin.runs.checkpoints import STATE, Checkpoint, checkpoint_folders
from simflow_plugin.runs.environment import read_environments
from simflow_plugin.runs.run_lock import RunLock

log = logging.getLogger(__name__)

SAFE_TO_CHANGE = (
    "name",
    "tracker",
    "sampling",
    "evaluation",
    "data.root",
    "training.steps",
    "training.num_workers",
    "training.compile",
    "training.deterministic",
    "training.log_every",
    "training.sample_every",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.keep_every",
    "training.max_bad_steps",
    "training.ema.snapshot_every",
)
"""Keys (and sections) that may change on resume with --allow-changed: none of them changes what a step computes (a
compiled layer or another kernel: up to rounding), except `training.steps`, which moves the end of a cosine schedule.
`data.root` is where the same images lie now; other images are noticed by their content
(`simflow_plugin.data.changes`)."""


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
        self.reconstructions_file = self.path / "reconstructions.png"
        self.samples = self.path / "samples"
        self.checkpoints = self.path / "checkpoints"
        self.averages = self.path / "averages"  # checkpoints with averages only
        self.id_file = self.path / "run.json"
        self._lock: RunLock | None = None

    def prepare(self, config: RunConfig, allow_changed: list[str]) -> None:
        """Create the directory, or check that the one that is there belongs to `config`.

        `allow_changed` are dotted keys that may differ from the run's own configuration.

        Raises:
            RunDirectoryError: if it holds another configuration, other files, or cannot be written.
        """
        self._refuse_foreign_folder()
        if self.config_file.exists():
            self._check_same(config, allow_changed)
        try:
            # The configuration first: it is what makes the folder ours, should the process be killed right here.
            self.path.mkdir(parents=True, exist_ok=True)
            if not (self.config_file.exists() and self.config_file.read_text() == config.to_yaml()):
                write_text_atomically(self.config_file, config.to_yaml())
            for folder in (self.samples, self.checkpoints):
                folder.mkdir(exist_ok=True)
            self._name_run()
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
            self._lock = RunLock(self.path)
        except OSError as error:
            raise self._not_writable(error) from error
        try:
            yield
        finally:
            self._lock.release()
            self._lock = None

    def check_lock(self) -> None:
        """Refuse to write if the lock was lost; to be called before each write of a process that holds it.

        Raises:
            RunDirectoryError: if its file was removed, or taken by another process.
        """
        if self._lock is not None:
            self._lock.check()

    @property
    def run_id(self) -> str | None:
        """The name that the run's checkpoints bear too; None for a run of an earlier version.

        Raises:
            RunDirectoryError: if its file holds none.
        """
        if not self.id_file.exists():
            return None
        found = read_json_object(self.id_file, RunDirectoryError).get("run_id")
        if not isinstance(found, str):
            raise RunDirectoryError(f"{self.id_file}: expected a text `run_id`, found {found!r}.")
        return found

    def check_own(self, checkpoint: Checkpoint) -> None:
        """Refuse a checkpoint of another run, whose tensors may well have the same shapes.

        Raises:
            CheckpointError: naming both runs.
        """
        own, found = self.run_id, checkpoint.state.get("run_id")
        if None not in (own, found) and own != found:
            raise CheckpointError(
                f"{checkpoint.path}: is of run {found}, and {self.path} holds run {own}. Remove it, or put back the "
                "run's own."
            )

    def _name_run(self) -> None:
        """Give the run an id, or the one that its newest checkpoint has."""
        if self.id_file.exists():
            return
        known = None
        for folder in checkpoint_folders(self.checkpoints)[-1:]:
            with suppress(CheckpointError):  # a torn one is dealt with when it is read
                known = read_json_object(folder / STATE, CheckpointError).get("run_id")
        write_text_atomically(self.id_file, json.dumps({"run_id": known or secrets.token_hex(8)}) + "\n")

    def write_data_summary(self, summary: dict[str, Any]) -> None:
        """Write what was understood of the data when the run was last started, to `data.json`."""
        self._write(self.data_file, json.dumps(summary, indent=1))

    def add_environment(self, environment: dict[str, Any]) -> None:
        """Add a record to `environment.json`: what the run was started, or resumed, with."""
        records = [*read_environments(self.environment_file), environment]
        self._write(self.environment_file, json.dumps(records, indent=1) + "\n")

    def _write(self, file: Path, text: str) -> None:
        try:
            write_text_atomically(file, text)
        except OSError as error:
            raise self._not_writable(error) from error

    def is_measured(self) -> bool:
        """Return whether summary and report are of the newest checkpoint and of the configuration as it stands."""
        folders = checkpoint_folders(self.checkpoints)
        if not (folders and self.summary_file.exists() and self.report_file.exists()):
            return False
        try:
            step = int(json.loads(self.summary_file.read_text())["step"])
        except (ValueError, LookupError, TypeError):
            return False  # not written by this package, or torn: it is measured anew
        written = min(self.summary_file.stat().st_mtime_ns, self.report_file.stat().st_mtime_ns)
        return folders[-1].name == f"step_{step:08d}" and written >= self.config_file.stat().st_mtime_ns

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the rows of metrics.jsonl. Lines that are none are left out, with a warning.

        The last line may be torn by a crash, which needs no warning: its step is run again.

        Raises:
            RunDirectoryError: if it is no plain file, or cannot be read.
        """
        if not self.metrics_file.exists():
            return []
        if not self.metrics_file.is_file():
            raise RunDirectoryError(f"{self.metrics_file}: is no plain file. Remove it.")
        try:
            lines = self.metrics_file.read_bytes().split(b"\n")
        except OSError as error:
            raise RunDirectoryError(
                f"{self.metrics_file}: cannot be read ({error.strerror}). Check its permissions."
            ) from error
        found = [_row(line) for line in lines]
        bad = [str(n) for n, row in enumerate(found[:-1], start=1) if row is None]
        if bad:
            log.warning("%s: not a row of a log, skipped: line %s", self.metrics_file, ", ".join(bad[:20]))
        return [row for row in found if row is not None]

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


def _row(line: bytes) -> dict[str, Any] | None:
    """Return a row of the log, None for a line that is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_row = isinstance(row, dict) and type(row.get("step")) is int
    return row if is_row else None
