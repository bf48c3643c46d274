"""Interrupted runs: what goes on is bit for bit what would have been; what must not go on is refused."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from simflow_plugin.errors import CheckpointError, RunDirectoryError
from simflow_plugin.runs.checkpoints import checkpoint_folders, latest_checkpoint
from simflow_plugin.runs.run_directory import RunDirectory
from simflow_plugin.training.interrupts import RESUME_EXIT_STATUS, Interrupted
from tests.training.tiny_runs import (
    ADVERSARIAL,
    StopAfter,
    assert_runs_equal,
    free_port,
    losses_of,
    make_trainer,
    tiny_config,
    tiny_values,
    with_corrupt_images,
)


def values_with(model="simflow", **sections):
    return {**tiny_values(model, steps=6, log_every=2, sample_every=3), **sections}


def with_adversary():
    return values_with(objective={"adversarial": ADVERSARIAL})


def with_latent_norm():
    values = values_with("sit")
    values["model"]["normalizes_latents"] = True
    return values


CASES = {
    "adversarial": with_adversary,
    "alignment": lambda: values_with(
        alignment={"encoder": "toy", "projector_dim": 8, "autoencoder_weight": 1.5}
    ),
    "batch_norm": with_latent_norm,
    "autoencoder": lambda: tiny_values(None, steps=6, log_every=4, horizontal_flip=True),
    "corrupt_images": lambda: tiny_values("simflow", steps=6, log_every=1),
    "accumulation": lambda: tiny_values("starflow", steps=6, log_every=2, accumulation=2),
}


@pytest.mark.parametrize("case", CASES)
def test_resumed_run_is_bitwise_equal(tmp_path, case):
    """Stopped after step 3: in the middle of a row of the log, and after the adversary has begun."""
    values = CASES[case]()
    if case == "corrupt_images":
        values = with_corrupt_images(values, tmp_path / "images")
    config = tiny_config(values=values)
    make_trainer(config, tmp_path / "whole").train()
    with pytest.raises(Interrupted, match="after step 3"):
        make_trainer(config, tmp_path / "parts", StopAfter(3)).train()
    make_trainer(config, tmp_path / "parts").train()
    assert_runs_equal(tmp_path / "whole", tmp_path / "parts")
    assert losses_of(tmp_path / "parts")[-1].get("corrupt_images") == (
        3 if case == "corrupt_images" else None
    )


def test_torn_newest_checkpoint_is_repeated_from_the_one_before(tmp_path):
    config = tiny_config(steps=6, checkpoint_every=2, keep_checkpoints=3)
    make_trainer(config, tmp_path / "whole").train()
    with pytest.raises(Interrupted):
        make_trainer(config, tmp_path / "torn", StopAfter(4)).train()
    file = tmp_path / "torn" / "checkpoints" / "step_00000004" / "joint.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    trainer = make_trainer(config, tmp_path / "torn")
    trainer.train()
    assert_runs_equal(tmp_path / "whole", tmp_path / "torn")


def test_finished_run_that_is_started_again_changes_nothing(tmp_path):
    config = tiny_config(steps=2)
    make_trainer(config, tmp_path / "run").train()
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    make_trainer(config, tmp_path / "run").train()
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_longer_run_goes_on_when_the_key_is_named(tmp_path):
    make_trainer(tiny_config(steps=2), tmp_path / "run").train()
    longer = tiny_config(steps=4)
    with pytest.raises(RunDirectoryError, match=r"training\.steps: 2 there, 4 now"):
        make_trainer(longer, tmp_path / "run")
    RunDirectory(tmp_path / "run").prepare(longer, ["training.steps"])
    make_trainer(longer, tmp_path / "run").train()
    assert [row["step"] for row in losses_of(tmp_path / "run")] == [2, 4]


def test_checkpoint_of_another_architecture_is_refused_by_name(tmp_path):
    make_trainer(tiny_config("simflow", steps=2), tmp_path / "run").train()
    values = tiny_values("simflow", steps=2)
    values["model"]["flow"] = {**values["model"]["flow"], "width": 24}
    (tmp_path / "run" / "config.yaml").write_text(tiny_config(values=values).to_yaml())
    with pytest.raises(
        CheckpointError, match=r"step_00000002/joint: weights of another architecture.*model\."
    ):
        make_trainer(tiny_config(values=values), tmp_path / "run").train()


# ---------------------------------------------------------------------- real processes


def command(config_file, out):
    arguments = ["--config", str(config_file), "--out", str(out), "--no-report"]
    return [sys.executable, "-m", "simflow_plugin.train", *arguments]


def environment():
    root = str(Path(__file__).parents[2])
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": root}


def start(config_file, out, **variables):
    return subprocess.Popen(
        command(config_file, out),
        start_new_session=True,  # a process group of its own, as under a scheduler
        env=environment() | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def errors_at_end(process, status):
    """Return what a process that ends with `status` wrote to standard error."""
    _, errors = process.communicate(timeout=120)
    assert process.returncode == status, errors
    return errors


def wait_until_logged(process, out, step):
    """Wait until the run has logged `step`; polls its log, as an operator would."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None or any(row["step"] >= step for row in RunDirectory(out).read_metrics()):
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not logged within 120 s")


@pytest.fixture
def config_file(tmp_path):
    values = with_adversary()
    values["training"] |= {"steps": 60, "log_every": 1, "checkpoint_every": 5, "sample_every": 30}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def endless_config_file(config_file):
    """The same run, which does not end before the signal comes, however late that is."""
    values = yaml.safe_load(config_file.read_text())
    values["training"] |= {"steps": 100_000, "sample_every": 100_000}
    config_file.write_text(yaml.safe_dump(values))
    return config_file


def test_process_killed_at_random_moments_ends_as_if_it_never_was(tmp_path, config_file):
    config = tiny_config(values=yaml.safe_load(config_file.read_text()))
    make_trainer(config, tmp_path / "whole").train()
    out, moments = tmp_path / "killed", random.Random(8)
    for _ in range(2):
        logged = [row["step"] for row in RunDirectory(out).read_metrics()]
        process = start(config_file, out)
        wait_until_logged(process, out, max(logged, default=0) + moments.randint(1, 20))
        time.sleep(moments.random() * 0.1)  # into a step, a row of the log or a checkpoint
        process.send_signal(signal.SIGKILL)
        process.communicate()
    errors_at_end(start(config_file, out), 0)
    assert_runs_equal(tmp_path / "whole", out)


def test_sigterm_finishes_the_step_saves_and_says_resume_me(tmp_path, endless_config_file):
    process = start(endless_config_file, tmp_path / "run")
    wait_until_logged(process, tmp_path / "run", 7)
    with pytest.raises(RunDirectoryError, match="another process is writing it"):
        RunDirectory(tmp_path / "run").locked().__enter__()
    process.send_signal(signal.SIGTERM)
    assert "run the same command again" in errors_at_end(process, RESUME_EXIT_STATUS)
    checkpoint = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert checkpoint.step == losses_of(tmp_path / "run")[-1]["step"]


def test_signal_to_the_whole_group_saves_although_readers_get_it_too(tmp_path, endless_config_file):
    """Schedulers and torchrun signal the group; a reading process that dies would take the run with it, unsaved."""
    values = yaml.safe_load(endless_config_file.read_text())
    values["training"]["num_workers"] = 1
    endless_config_file.write_text(yaml.safe_dump(values))
    process = start(endless_config_file, tmp_path / "run")
    wait_until_logged(process, tmp_path / "run", 3)
    os.killpg(process.pid, signal.SIGTERM)
    errors_at_end(process, RESUME_EXIT_STATUS)
    step = latest_checkpoint(tmp_path / "run" / "checkpoints").step
    assert step == losses_of(tmp_path / "run")[-1]["step"]


def test_lock_waits_for_readers_whose_parent_was_killed(tmp_path):
    """They inherit the lock and live a few seconds longer: the same command at once is no mistake of the user."""
    run = RunDirectory(tmp_path / "run")
    code = (
        "import os, sys, time\n"
        "from simflow_plugin.runs.run_directory import RunDirectory\n"
        f"held = RunDirectory({str(run.path)!r}).locked(); held.__enter__()\n"
        "if os.fork() == 0: time.sleep(1.5); os._exit(0)\n"
        "print('locked', flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout.readline() == "locked\n"
    with pytest.raises(RunDirectoryError, match="another process is writing it"), run.locked():
        pass
    parent.kill()
    parent.wait()
    with run.locked():
        pass


def test_sigterm_to_one_of_two_processes_ends_both_with_that_status(tmp_path, endless_config_file):
    """Both close their connections: gloo's threads abort a process that ends without."""
    out = tmp_path / "run"
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    group |= {"ACCELERATE_USE_CPU": "true"}
    both = [start(endless_config_file, out, RANK=r, LOCAL_RANK=r, **group) for r in ("0", "1")]
    wait_until_logged(both[0], out, 7)
    both[1].send_signal(signal.SIGTERM)
    for process in both:
        assert "run the same command again" in errors_at_end(process, RESUME_EXIT_STATUS)


def test_run_directory_without_write_permission_is_named(tmp_path, monkeypatch):
    """Simulated: the superuser, as whom tests may run, may write everywhere."""

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(RunDirectoryError, match=r"run: cannot be written \(Permission denied\)"):
        run.prepare(tiny_config(), [])
    with pytest.raises(RunDirectoryError, match="Permission denied"), run.locked():
        pass


def test_checkpoint_on_a_full_file_system_leaves_the_last_good_one(tmp_path):
    """A real file system of 2 MB, where the test may mount one."""
    mount = tmp_path / "small"
    mount.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(mount)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount")
    try:
        config = tiny_config(steps=8, checkpoint_every=2, keep_checkpoints=9, log_every=1)
        with pytest.raises(Exception, match=r"the disk is full") as failure:
            make_trainer(config, mount / "run").train()
        assert failure.type.__name__ == "TrainingError"
        folders = checkpoint_folders(mount / "run" / "checkpoints")
        assert latest_checkpoint(mount / "run" / "checkpoints").path == folders[-1]
        step = latest_checkpoint(mount / "run" / "checkpoints").step
        subprocess.run(["mount", "-o", "remount,size=64m", str(mount)], check=True)
        make_trainer(config, tmp_path / "whole").train()
        make_trainer(config, mount / "run").train()
        assert 2 <= step < 8
        assert_runs_equal(tmp_path / "whole", mount / "run")
    finally:
        subprocess.run(["umount", str(mount)], check=True)
