"""Run directories: one configuration, one writer, nothing overwritten."""

import errno
import fcntl
import json
import os
import subprocess
import sys

import pytest

from simflow_plugin.config.loading import load_config
from simflow_plugin.errors import RunDirectoryError, TrainingError
from simflow_plugin.runs import run_lock
from simflow_plugin.runs.run_directory import RunDirectory, differing_keys


@pytest.fixture(scope="module")
def config():
    return load_config("quickstart")


@pytest.fixture
def run(tmp_path, config):
    """A directory that was prepared."""
    run = RunDirectory(tmp_path / "run")
    run.prepare(config, [])
    return run


def test_same_configuration_is_resumed(run, config):
    run.prepare(config, [])
    assert run.config_file.exists()


def test_other_configuration_is_refused_with_the_differing_keys(run):
    before = run.config_file.read_bytes()
    other = load_config("quickstart", ["optimizer.lr=0.5"])
    with pytest.raises(RunDirectoryError, match=r"optimizer\.lr: 0\.\d+ there, 0\.5 now"):
        run.prepare(other, [])
    assert run.config_file.read_bytes() == before


def test_only_a_safe_key_may_change_and_only_when_named(run, config):
    longer = load_config("quickstart", ["training.steps=99999"])
    with pytest.raises(RunDirectoryError, match=r"training\.steps"):
        run.prepare(longer, [])
    run.prepare(longer, ["training.steps"])
    with pytest.raises(RunDirectoryError, match="not a key that may change"):
        run.prepare(config, ["optimizer.lr"])


def test_folder_with_other_files_is_refused_and_left_as_it_was(tmp_path, config):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunDirectoryError, match="no run directory"):
        RunDirectory(tmp_path).prepare(config, [])
    with pytest.raises(RunDirectoryError, match="no run directory"), RunDirectory(tmp_path).locked():
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_lock_of_a_new_an_empty_and_a_begun_directory_is_given(tmp_path, config):
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        run = RunDirectory(tmp_path / name)
        for _ in range(2):
            with run.locked():
                run.prepare(config, [])
                assert run.config_file.is_file()


def test_second_process_is_refused_by_the_lock(tmp_path):
    run = RunDirectory(tmp_path / "run")
    code = (
        "import sys; from simflow_plugin.runs.run_directory import RunDirectory\n"
        "try:\n"
        f"    with RunDirectory({str(run.path)!r}).locked(): print('entered')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    with run.locked():
        answer = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
    assert "RunDirectoryError" in answer
    assert "another process is writing it (process" in answer
    with run.locked():
        pass


def test_metrics_of_steps_that_run_again_are_forgotten(run):
    run.metrics_file.write_text(
        "".join(json.dumps({"step": s}) + "\n" for s in (1, 2, 3)) + '{"step": 4, "nl'
    )
    run.forget_metrics_after(2)
    assert [row["step"] for row in run.read_metrics()] == [1, 2]


def test_differing_keys_are_dotted():
    assert differing_keys({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4}) == {
        "a.c": (2, 3),
        "d": (None, 4),
    }


def test_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    def flock(*args):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with RunDirectory(tmp_path / "run").locked():
        pass
    assert "this file system has no locks" in caplog.text


def test_disk_that_is_still_full_is_named_when_the_command_is_run_again(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with (
        pytest.raises(TrainingError, match=r"run: the disk is full .*run the same command again"),
        RunDirectory(tmp_path / "run").locked(),
    ):
        pass


def test_owner_whose_number_no_process_can_have_is_dead():
    assert run_lock._is_dead(run_lock._this_process(10**30))
    assert not run_lock._is_dead(run_lock._this_process(os.getpid()))
