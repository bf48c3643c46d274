"""Checkpoints: whole or not there, verified when read, kept and deleted as asked."""

import errno
import json
import shutil

import pytest
import torch

from simflow_plugin.errors import CheckpointError, TrainingError
from simflow_plugin.runs import checkpoints
from simflow_plugin.runs.checkpoints import (
    checkpoint_folders,
    latest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)


def save(folder, step):
    return save_checkpoint(folder, step, {"joint": {"w": torch.full((3,), float(step))}}, {"seconds": 1.5})


def test_saved_tensors_and_state_come_back(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    save(tmp_path, 7)
    checkpoint = latest_checkpoint(tmp_path)
    assert (checkpoint.step, checkpoint.state["seconds"]) == (7, 1.5)
    assert torch.equal(checkpoint.tensors("joint")["w"], torch.full((3,), 7.0))


@pytest.mark.parametrize("damage", ["truncate", "flip", "no_manifest", "no_file"])
def test_torn_checkpoint_is_passed_over_for_the_one_before(tmp_path, damage, caplog):
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    file = newest / "joint.safetensors"
    data = bytearray(file.read_bytes())
    if damage == "truncate":
        file.write_bytes(data[:-4])
    elif damage == "flip":
        data[-1] ^= 1
        file.write_bytes(data)
    else:
        (file if damage == "no_file" else newest / "manifest.json").unlink()
    assert latest_checkpoint(tmp_path).step == 1
    assert "step_00000002" in caplog.text


def test_only_torn_checkpoints_is_an_error(tmp_path):
    (save(tmp_path, 1) / "joint.safetensors").unlink()
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints is intact"):
        latest_checkpoint(tmp_path)


def test_checkpoint_of_a_newer_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "FORMAT_VERSION", 99)
    save(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="written in format 99.*Upgrade"):
        latest_checkpoint(tmp_path)


def test_full_disk_stops_with_a_message_and_keeps_the_last_good_one(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(TrainingError, match=r"disk is full.*step_00000001"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert latest_checkpoint(tmp_path).step == 1
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]


def test_half_written_checkpoint_is_not_taken_for_one(tmp_path, monkeypatch):
    """A process killed before the rename leaves a folder that no reader looks at, and the next save removes."""

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 1)
    monkeypatch.undo()
    assert latest_checkpoint(tmp_path) is None
    save(tmp_path, 1)
    assert latest_checkpoint(tmp_path).step == 1


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"keep": 2, "keep_every": 3}, [3, 6, 7]),
        ({"keep": 1, "keep_every": None, "keep_step": 4}, [4, 7]),  # that guides the samples
    ],
)
def test_newest_every_nth_and_one_that_is_needed_are_kept(tmp_path, options, kept):
    for step in range(1, 8):
        save(tmp_path, step)
        prune_checkpoints(tmp_path, step, **options)
    assert [int(p.name[5:]) for p in checkpoint_folders(tmp_path)] == kept


def test_torn_checkpoint_of_a_later_step_does_not_count_among_the_newest(tmp_path):
    save(tmp_path, 1)
    (save(tmp_path, 5) / "joint.safetensors").unlink()
    save(tmp_path, 2)
    prune_checkpoints(tmp_path, step=2, keep=1, keep_every=5)
    assert [p.name for p in checkpoint_folders(tmp_path)] == ["step_00000002"]


def test_what_a_killed_process_left_behind_is_cleared_by_the_next_save(tmp_path):
    (tmp_path / ".step_00000003.0a1b2c3d.part").mkdir()
    save(tmp_path, 4)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000004"]


def test_manifest_holds_size_and_checksum_of_every_file(tmp_path):
    path = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    assert set(manifest) == {"joint.safetensors", "state.json"}
    assert all(entry["bytes"] > 0 and len(entry["sha256"]) == 64 for entry in manifest.values())


def test_copy_that_somebody_made_is_left_alone(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    shutil.copytree(tmp_path / "step_00000003", tmp_path / "step_00000003.bak")
    assert latest_checkpoint(tmp_path).path.name == "step_00000003"
    assert [p.name for p in checkpoint_folders(tmp_path)] == [f"step_0000000{n}" for n in (1, 2, 3)]


@pytest.mark.parametrize("manifest", ["[]", '{"joint.safetensors": 1}', '{"joint.safetensors": {}}', "{}"])
def test_manifest_of_another_shape_is_no_whole_checkpoint(tmp_path, manifest):
    save_checkpoint(tmp_path, 1, {"joint": {"x": torch.ones(2)}}, {})
    newest = save_checkpoint(tmp_path, 2, {"joint": {"x": torch.ones(2)}}, {})
    (newest / "manifest.json").write_text(manifest)
    assert latest_checkpoint(tmp_path).step == 1
