"""Checkpoints: written beside their place, flushed, checksummed, renamed; verified when read.

One folder a step: `step_00001000/` with `*.safetensors` for tensors, `state.json` for the rest and `manifest.json` with
the size and SHA-256 of each file. Nothing is pickled. A folder that does not match its manifest is reported and
passed over for the one before it.
"""

from __future__ import annotations

import errno
import json
import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from simflow_plugin.errors import CheckpointError, TrainingError
from simflow_plugin.files import file_digest, replacing

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
STATE = "state.json"
FOLDER_NAME = re.compile(r"step_\d{8,}")
"""Folders of other names, copies for example, are left alone."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk.

    Args:
        path: its folder.
        step: optimizer steps done.
        state: the content of `state.json`.
    """

    path: Path
    step: int
    state: dict[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Read `<name>.safetensors`."""
        return load_file(self.path / f"{name}.safetensors")

    def has(self, name: str) -> bool:
        """Return whether the checkpoint holds `<name>.safetensors`."""
        return (self.path / f"{name}.safetensors").is_file()


def save_checkpoint(
    folder: Path, step: int, tensors_by_name: dict[str, dict[str, Tensor]], state: dict[str, Any]
) -> Path:
    """Write a checkpoint in one piece.

    Raises:
        TrainingError: if the disk is full; the checkpoints that were there stay untouched.
    """
    final = folder / f"step_{step:08d}"
    try:
        for left_behind in folder.glob(".step_*.part"):  # by processes that were killed
            _remove(left_behind)
        with replacing(final) as part:
            part.mkdir()
            _write(part, tensors_by_name, {"format_version": FORMAT_VERSION, "step": step, **state})
            _remove(final)
    except (OSError, safetensors.SafetensorError) as error:
        if is_disk_full(error):
            raise TrainingError(
                f"{folder}: the disk is full; the checkpoint of step {step} was not written. The last good one is "
                f"{_last_name(folder)}. Free some space and run the same command again."
            ) from error
        raise
    return final


def _write(folder: Path, tensors_by_name: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
    for name, tensors in tensors_by_name.items():
        plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        save_file(plain, folder / f"{name}.safetensors")
    (folder / STATE).write_text(json.dumps(state, indent=1))
    manifest = {
        path.name: {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        for path in sorted(folder.iterdir())
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def read_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint that was verified before."""
    state = json.loads((path / STATE).read_text())
    return Checkpoint(path, int(state["step"]), state)


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the newest intact checkpoint, or None; torn ones are logged and passed over.

    Raises:
        CheckpointError: if checkpoints are there but none is intact, or the newest is of a newer format.
    """
    paths = checkpoint_folders(folder)
    for path in reversed(paths):
        problem = verify_checkpoint(path)
        if problem is None:
            return read_checkpoint(path)
        log.warning("%s: %s. Passing over it for the one before.", path, problem)
    if paths:
        raise CheckpointError(
            f"{folder}: none of the {len(paths)} checkpoints is intact. Restore one from a copy, or start a new run."
        )
    return None


def checkpoint_folders(folder: Path) -> list[Path]:
    """Return the checkpoint folders, oldest first."""
    return sorted(p for p in folder.glob("step_*") if p.is_dir() and FOLDER_NAME.fullmatch(p.name))


def verify_checkpoint(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None if every file matches the manifest.

    Raises:
        CheckpointError: if it was written by a newer version of this package.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        promised = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest.items()}
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        return f"its manifest cannot be read ({error})"
    if STATE not in promised:
        return f"its manifest does not name {STATE}"
    for name, (size, checksum) in promised.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes, the manifest says {size}"
        if file_digest(file) != checksum:
            return f"{name} does not match its checksum"
    version = json.loads((path / STATE).read_text()).get("format_version", 0)
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: written in format {version}, this version of simflow-plugin reads up to {FORMAT_VERSION}. "
            "Upgrade simflow-plugin."
        )
    return None


def prune_checkpoints(folder: Path, step: int, keep: int, keep_every: int | None) -> None:
    """Delete all but the newest `keep` checkpoints and those whose step is a multiple of `keep_every`.

    Args:
        folder: of the checkpoints.
        step: of the checkpoint just saved. Later ones were passed over when the run resumed: they are torn, must not
            count among the newest, and are deleted.
        keep: number of the newest to keep.
        keep_every: None keeps no others.
    """
    steps = {path: int(path.name.removeprefix("step_")) for path in checkpoint_folders(folder)}
    newest = [path for path in steps if steps[path] <= step][-keep:]
    for path, its_step in steps.items():
        is_kept_for_good = keep_every is not None and its_step % keep_every == 0 and its_step <= step
        if path not in newest and not is_kept_for_good:
            _remove(path)


def _remove(path: Path) -> None:
    """Delete a folder; the manifest goes first, so that a half-deleted checkpoint is never taken for an intact one."""
    if path.exists():
        (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path)


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error says that the disk is full, or a quota or a limit on file sizes reached."""
    messages = ("No space left", "Disk quota exceeded", "File too large")
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or any(
        message in str(error) for message in messages
    )


def _last_name(folder: Path) -> str:
    folders = checkpoint_folders(folder)
    return folders[-1].name if folders else "(none yet)"
