"""Checkpoints: written beside their place, flushed, checksummed, renamed; verified when read.

One folder a step: `step_00001000/` with `*.safetensors` for tensors, `state.json` for the rest and `manifest.json`
with the size and SHA-256 of each file. `state.json` counts the tensors of each file, so that one that is left out is
missed. Nothing is pickled. A folder that does not match its manifest is reported and passed over for the one before
it.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import safetensors
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from simflow_plugin.errors import CheckpointError, TrainingError
from simflow_plugin.files import file_digest, is_disk_full, read_json_object, replacing

FORMAT_VERSION = 2
"""2: `state.json` has `num_tensors` by file and the run's id."""
MANIFEST = "manifest.json"
STATE = "state.json"
FOLDER_NAME = re.compile(r"step_[0-9]{8,18}")
"""Folders of other names, copies for example, are left alone."""

log = logging.getLogger(__name__)

Count = Annotated[int, Field(ge=0)]


class CheckpointState(BaseModel):
    """Plain values of a checkpoint; earlier versions lack some, and other packages may add theirs."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    step: Count
    format_version: Count
    num_tensors: dict[str, Count] = Field(default_factory=dict)
    run_id: str | None = None
    seconds: float = Field(0.0, ge=0)
    num_classes: Count | None = None
    class_names: list[str] | None = None
    num_images: Count | None = None
    feature_dim: Count | None = None
    autoencoder_options: dict[str, Any] | None = None
    corrupt_images: list[Count] = Field(default_factory=list)
    steps_since_log: Count = 0
    skipped_steps: Count = 0
    skipped_in_a_row: Count = 0
    bad_steps: dict[str, Annotated[list[Count], Field(min_length=2, max_length=2)]] = Field(
        default_factory=dict
    )
    scaler: dict[str, float] | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk: its folder, the optimizer steps done, and the content of `state.json`."""

    path: Path
    step: int
    state: dict[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Read `<name>.safetensors`.

        Raises:
            CheckpointError: if it is missing, or no safetensors file.
        """
        path = self.path / f"{name}.safetensors"
        if not path.is_file():
            raise CheckpointError(f"{path}: is missing. Name another checkpoint, or start a new run.")
        try:
            return load_file(path)
        except (OSError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{path}: is no readable safetensors file: {error}.") from error

    def require(self, *keys: str) -> None:
        """Raise `CheckpointError` unless `state.json` has these keys."""
        missing = [key for key in keys if key not in self.state]
        if missing:
            raise CheckpointError(
                f"{self.path / STATE}: lacks {', '.join(missing)}. It is no checkpoint of a training run."
            )


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
            counts = {name: len(tensors) for name, tensors in tensors_by_name.items()}
            head = {"format_version": FORMAT_VERSION, "step": step, "num_tensors": counts}
            _write(part, tensors_by_name, {**head, **state})
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
    state = read_json_object(path / STATE, CheckpointError)
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
    """Return the checkpoint folders, oldest first.

    Raises:
        CheckpointError: if the folder is there but cannot be read: a run would begin anew.
    """
    try:
        found = list(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot be read ({error.strerror}). Check its permissions."
        ) from error
    return sorted(
        (p for p in found if FOLDER_NAME.fullmatch(p.name) and p.is_dir()),
        key=lambda p: (len(p.name), p.name),
    )


def verify_checkpoint(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None if every file is there and matches the manifest.

    Raises:
        CheckpointError: if it was written by a newer version of this package.
    """
    try:
        problem = _problem_with_files(path)
        if problem is not None:
            return problem
        state = read_json_object(path / STATE, CheckpointError)
    except (CheckpointError, OSError) as error:
        return str(error)
    version = state.get("format_version", 0)
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: written in format {version}, this version of simflow-plugin reads up to {FORMAT_VERSION}. "
            "Upgrade simflow-plugin."
        )
    return _problem_with_state(state, int(path.name.removeprefix("step_"))) or _problem_with_contents(
        path, state
    )


def _problem_with_state(state: dict[str, Any], step: int) -> str | None:
    try:
        found = CheckpointState.model_validate(state)
    except ValidationError as error:
        first = error.errors()[0]
        return f"state.json: {'.'.join(map(str, first['loc']))}: {first['msg']}, found {first['input']!r:.80}"
    if found.format_version >= 2 and "num_tensors" not in state:
        return "state.json: num_tensors is missing"
    return None if found.step == step else f"state.json is of step {found.step}"


def _problem_with_files(path: Path) -> str | None:
    manifest = read_json_object(path / MANIFEST, CheckpointError)
    if STATE not in manifest:
        return f"its manifest does not name {STATE}"
    for name, entry in manifest.items():
        file = path / name
        if file.parent != path or not isinstance(entry, dict) or not {"bytes", "sha256"} <= entry.keys():
            return f"its manifest cannot be read ({name!r}: expected a file with `bytes` and `sha256`)"
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != entry["bytes"]:
            return f"{name} has {file.stat().st_size} bytes, the manifest says {entry['bytes']}"
        if file_digest(file) != entry["sha256"]:
            return f"{name} does not match its checksum"
    return None


def _problem_with_contents(path: Path, state: dict[str, Any]) -> str | None:
    """Compare the tensor files with those that the checkpoint consisted of when it was written."""
    if state.get("format_version", 0) < 2:
        return None
    manifest = read_json_object(path / MANIFEST, CheckpointError)
    listed = {name.removesuffix(".safetensors") for name in manifest if name.endswith(".safetensors")}
    counts = state["num_tensors"]
    if listed != counts.keys():
        differing = ", ".join(sorted(listed ^ counts.keys()))
        return f"its manifest and {STATE} name different files ({differing})"
    for name, count in counts.items():
        try:
            with safetensors.safe_open(path / f"{name}.safetensors", "pt") as file:
                found = len(file.keys())
        except (OSError, safetensors.SafetensorError) as error:
            return f"{name}.safetensors cannot be read ({error})"
        if found != count:
            return f"{name}.safetensors holds {found} tensors of {count}"
    return None


def prune_checkpoints(
    folder: Path, step: int, keep: int, keep_every: int | None, keep_step: int | None = None
) -> None:
    """Delete all but the newest `keep` checkpoints, those of multiples of `keep_every` and that of `keep_step`.

    Checkpoints of later steps than `step`, just saved, were passed over when the run resumed: they are torn, must not
    count among the newest, and are deleted.
    """
    steps = {path: int(path.name.removeprefix("step_")) for path in checkpoint_folders(folder)}
    newest = [path for path in steps if steps[path] <= step][-keep:]
    for path, its_step in steps.items():
        is_multiple = keep_every is not None and its_step % keep_every == 0
        is_kept_for_good = (is_multiple or its_step == keep_step) and its_step <= step
        if path not in newest and not is_kept_for_good:
            _remove(path)


def _remove(path: Path) -> None:
    """Delete a folder; the manifest goes first, so that a half-deleted checkpoint is never taken for an intact one."""
    if path.exists():
        (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path)


def _last_name(folder: Path) -> str:
    folders = checkpoint_folders(folder)
    return folders[-1].name if folders else "(none yet)"
