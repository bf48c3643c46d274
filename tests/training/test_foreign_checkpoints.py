"""A checkpoint that is not what this run wrote is refused or passed over before any of it is copied."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from simflow_plugin.errors import CheckpointError, NotFiniteError, RunDirectoryError
from simflow_plugin.runs.checkpoints import checkpoint_folders, latest_checkpoint
from simflow_plugin.runs.run_directory import RunDirectory
from tests.training.tiny_runs import StopAfter, losses_of, make_trainer, tiny_config

CONFIG = {"steps": 4, "log_every": 1, "sample_every": 100, "checkpoint_every": 100}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    path = tmp_path_factory.mktemp("trained") / "run"
    trainer = make_trainer(tiny_config(**CONFIG), path, StopAfter(2))
    with pytest.raises(BaseException, match="after step 2"):
        trainer.train()
    return path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def newest(run: Path) -> Path:
    return checkpoint_folders(run / "checkpoints")[-1]


def sign(folder: Path) -> None:
    """Write a manifest that holds for whatever is in the folder."""
    manifest = {
        p.name: {"bytes": p.stat().st_size, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()}
        for p in folder.iterdir()
        if p.name != "manifest.json"
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def change(run: Path, name: str, how: Any) -> None:
    """Let `how` change the tensors of a file; the checksum is made to hold."""
    file = newest(run) / f"{name}.safetensors"
    tensors = load_file(file)
    how(tensors)
    file.unlink()
    save_file(tensors, file)
    sign(newest(run))


def resume(run: Path) -> None:
    make_trainer(tiny_config(**CONFIG), run).train()


CHANGES = {
    "misshapen": lambda matrix: torch.zeros(2, 2),
    "broadcastable": lambda matrix: matrix[:1].clone(),
    "mistyped": lambda matrix: matrix.half(),
    "renamed": lambda matrix: matrix,
    "not_finite": lambda matrix: torch.full_like(matrix, torch.nan),
}
"""By which the first matrix of a file is replaced."""


@pytest.mark.parametrize("name", ["joint", "ema", "optimizer"])
@pytest.mark.parametrize("how", CHANGES)
def test_tensor_that_the_run_does_not_hold_is_refused_before_anything_is_copied(
    run: Path, name: str, how: str
) -> None:
    def replace(tensors: dict[str, torch.Tensor]) -> None:
        key = next(key for key, tensor in tensors.items() if tensor.ndim > 1)
        changed = CHANGES[how](tensors.pop(key))
        tensors["elsewhere/exp_avg" if how == "renamed" else key] = changed

    change(run, name, replace)
    trainer = make_trainer(tiny_config(**CONFIG), run)
    before = {key: tensor.clone() for key, tensor in trainer.joint.state_dict().items()}
    expected = NotFiniteError if how == "not_finite" else CheckpointError
    with pytest.raises(expected, match="step_00000002"):
        trainer.train()
    assert all(torch.equal(before[key], tensor) for key, tensor in trainer.joint.state_dict().items())
    assert not trainer.optimizer.state


def lacking(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[sorted(tensors)[-1]]


@pytest.mark.parametrize("name", ["joint", "ema", "optimizer"])
@pytest.mark.parametrize("how", [lacking, dict.clear])
def test_file_with_fewer_tensors_than_were_written_is_torn(run: Path, name: str, how: Any) -> None:
    change(run, name, how)
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        latest_checkpoint(run / "checkpoints")


@pytest.mark.parametrize("name", ["joint", "ema", "optimizer", "log_sums"])
def test_file_left_out_of_the_manifest_is_missed(run: Path, name: str, caplog: Any) -> None:
    (newest(run) / f"{name}.safetensors").unlink()
    sign(newest(run))
    with pytest.raises(CheckpointError):
        resume(run)
    assert name in caplog.text


def test_checkpoint_of_another_run_of_the_same_shape_is_refused(run: Path, tmp_path: Path) -> None:
    own = RunDirectory(run).run_id
    (tmp_path / "other").mkdir()
    shutil.copy(run / "config.yaml", tmp_path / "other")
    make_trainer(tiny_config(**CONFIG), tmp_path / "other")  # names it
    shutil.copytree(newest(run), tmp_path / "other" / "checkpoints" / newest(run).name)
    with pytest.raises(CheckpointError, match=f"is of run {own}, and .*other holds run"):
        resume(tmp_path / "other")


def test_run_that_lost_its_id_goes_on_under_that_of_its_checkpoints(run: Path) -> None:
    own = RunDirectory(run).run_id
    (run / "run.json").unlink()
    resume(run)
    assert RunDirectory(run).run_id == own


CONTENTS = {
    "list": b"[]",
    "nested": b'{"step": ' + b"[" * 100_000,
    "bytes": b"\xff\xfe\x00",
    "empty": b"",
    "null": b"null",
}


@pytest.mark.parametrize("content", [*CONTENTS, "pipe", "folder"])
@pytest.mark.parametrize("name", ["manifest.json", "state.json", "run.json"])
def test_file_of_any_content_is_one_clear_error(run: Path, name: str, content: str) -> None:
    path = run / name if name == "run.json" else newest(run) / name
    path.unlink()
    if content == "pipe":
        os.mkfifo(path)
    elif content == "folder":
        path.mkdir()
    else:
        path.write_bytes(CONTENTS[content])
        if name == "state.json":
            sign(newest(run))
    with pytest.raises((CheckpointError, RunDirectoryError), match=r"run\.json|none of the 1 checkpoints"):
        resume(run)


@pytest.mark.parametrize(
    "values",
    [{"step": "2"}, {"step": 3}, {"seconds": None}, {"bad_steps": {"skipped_steps": 1}}, {"scaler": []}],
)
def test_value_of_another_type_in_the_state_is_torn(run: Path, values: dict[str, Any], caplog: Any) -> None:
    path = newest(run) / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    sign(newest(run))
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        resume(run)
    assert "state.json" in caplog.text


def test_bad_lines_of_the_log_are_skipped_with_a_warning_and_the_run_goes_on(run: Path, caplog: Any) -> None:
    log = run / "metrics.jsonl"
    first, second = log.read_bytes().splitlines()
    bad = (b"\xff\xfe", b"[" * 100_000, b"[]", b'{"step": "x"}', b'{"loss": 1}', b"nonsense")
    log.write_bytes(b"\n".join([first, *bad, second, b'{"step": 3, "lo']))
    resume(run)
    assert [row["step"] for row in losses_of(run)] == [1, 2, 3, 4]
    assert "not a row of a log, skipped: line 2, 3, 4, 5, 6, 7" in caplog.text


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_log_that_is_no_plain_file_is_refused(run: Path, kind: str) -> None:
    log = run / "metrics.jsonl"
    log.unlink()
    os.mkfifo(log) if kind == "pipe" else log.mkdir()
    with pytest.raises(RunDirectoryError, match="no plain file"):
        resume(run)


def test_unreadable_folder_of_checkpoints_does_not_begin_the_run_anew(run: Path, monkeypatch: Any) -> None:
    def denied(self: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    trainer = make_trainer(tiny_config(**CONFIG), run)
    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(CheckpointError, match="cannot be read .Permission denied"):
        trainer.train()


# ---------------------------------------------------------------------- two writers


@pytest.mark.parametrize("how", ["removed", "replaced", "taken"])
def test_writer_that_lost_its_lock_writes_no_more(run: Path, how: str) -> None:
    config = tiny_config(**CONFIG)
    trainer = make_trainer(config, run)
    rows = losses_of(run)
    with trainer.run_directory.locked():
        if how == "taken":  # a file system without locks: the other one wrote its name
            (run / ".lock").write_text("process 1 on another\n")
        else:
            (run / ".lock").unlink()
        if how == "replaced":
            (run / ".lock").touch()
        with pytest.raises(RunDirectoryError, match="removed or taken by another process"):
            trainer.train()
    assert losses_of(run) == rows
    assert [path.name for path in checkpoint_folders(run / "checkpoints")] == ["step_00000002"]


@pytest.mark.parametrize("owner", ["process {alive} on {here}", "process 7 on elsewhere"])
def test_second_start_without_locks_is_refused_by_process_and_host(
    run: Path, owner: str, monkeypatch: Any
) -> None:
    import errno
    import fcntl
    import socket

    def flock(*of: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    name = owner.format(alive=os.getppid(), here=socket.gethostname())
    (run / ".lock").write_text(f"{name}\n")
    with pytest.raises(RunDirectoryError, match=name), RunDirectory(run).locked():
        pass
    assert (run / ".lock").read_text() == f"{name}\n"


def test_finished_run_does_not_name_its_machine(run: Path) -> None:
    with RunDirectory(run).locked():
        assert "process" in (run / ".lock").read_text()
    assert (run / ".lock").read_text() == ""
