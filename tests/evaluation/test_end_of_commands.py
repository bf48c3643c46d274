"""Commands end with the documented status: full disk, network that diverged, output that nobody reads."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from simflow_plugin import files
from simflow_plugin.cli.app import app
from simflow_plugin.errors import TrainingError, WeightsError
from simflow_plugin.streams import surviving_readers
from simflow_plugin.weights import read_tensors
from tests.evaluation.runs import copy_run
from tests.training.test_foreign_checkpoints import change
from tests.training.tiny_runs import make_trainer, poison_images, tiny_config

COMMANDS = {
    "sample": ["sample", "{run}", "--num", "2", "--out", "{out}/s.npz"],
    "sample png": ["sample", "{run}", "--num", "2", "--out", "{out}/folder"],
    "export": ["export", "{run}", "--keep-scale", "--out", "{out}/a.safetensors"],
    "evaluate": [
        "evaluate",
        "{run}",
        "--only",
        "reconstruction",
        "--extractor",
        "none",
        "--num-held-out",
        "4",
    ],
    "analyze": ["analyze", "{run}", "--num-images", "4", "--num-strips", "1"],
}


def invoke(command: str, run: Path, out: Path) -> Any:
    return CliRunner().invoke(app, [part.format(run=run, out=out) for part in COMMANDS[command]])


@pytest.mark.parametrize("command", COMMANDS)
def test_full_disk_is_status_3_and_leaves_nothing(
    flow_run: Path,
    tmp_path: Path,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, out = copy_run(flow_run, tmp_path / "run"), tmp_path / "out"
    out.mkdir()
    before = {path for path in run.rglob("*") if path.is_file()}

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "_flush", full)
    result = invoke(command, run, out)
    assert result.exit_code == 3, result.output
    assert "No space left" in result.stderr
    assert list(out.iterdir()) == []
    assert {path for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("command", ["sample", "export", "evaluate", "analyze"])
def test_network_with_nan_is_refused_by_the_name_of_the_tensor(
    flow_run: Path,
    tmp_path: Path,
    command: str,
) -> None:
    run = copy_run(flow_run, tmp_path / "run")
    broken: list[str] = []

    def poison(tensors: dict[str, torch.Tensor]) -> None:
        broken.append(next(name for name in tensors if name.startswith("autoencoder.")))
        tensors[broken[0]].flatten()[0] = torch.inf

    change(run, "ema", poison)
    result = invoke(command, run, tmp_path)
    assert result.exit_code == 3, result.output
    assert broken[0].removeprefix("autoencoder.") in result.stderr.replace("\n", "")


def test_run_of_which_no_step_was_finite_ends_with_status_3(tmp_path: Path) -> None:
    for _ in range(2):  # also when it is started again
        trainer = make_trainer(tiny_config(steps=4), tmp_path / "run")
        poison_images(trainer, range(4))
        with pytest.raises(TrainingError, match="all 4 steps .*learned nothing") as error:
            trainer.train()
    assert error.value.exit_status == 3


def test_run_with_one_good_step_ends_well(tmp_path: Path) -> None:
    trainer = make_trainer(tiny_config(steps=4), tmp_path / "run")
    poison_images(trainer, range(3))
    trainer.train()
    assert trainer.step == 4
    assert trainer.bad_steps.read()["skipped_steps"][0] == 3


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_reader_that_goes_away_ends_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, name, stream)
    with surviving_readers():
        print("read", file=getattr(sys, name), flush=True)
        assert os.read(reader, 100) == b"read\n"
        os.close(reader)
        for _ in range(3):
            print("x" * 100_000, file=getattr(sys, name), flush=True)
    assert getattr(sys, name) is stream
    stream.close()


PAGES = [
    ["simflow_plugin", "--help"],
    ["simflow_plugin", "train", "--help"],
    ["simflow_plugin.train", "--help"],
]


@pytest.mark.parametrize("arguments", PAGES)
def test_page_of_help_that_nobody_reads_ends_well(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        done = subprocess.run([sys.executable, "-m", *arguments], stdout=pipe, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", PAGES)
def test_page_of_help_on_a_full_disk_is_status_3(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", *arguments], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 3, done.stderr
    assert b"the disk is full" in done.stderr
    assert b"Traceback" not in done.stderr


def test_other_errors_of_a_stream_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(OSError, match="No space left"), surviving_readers():
        print("x", flush=True)


def test_state_dict_that_holds_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {"weight": torch.ones(1)}
    content["again"] = content
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match="holds itself"):
        read_tensors(tmp_path / "a.pt")


def test_pages_that_are_passed_on_do_not_say_where_data_lies() -> None:
    config = tiny_config(values=None)
    changed = config.model_copy(
        update={"data": config.data.model_copy(update={"options": {"root": "/home/somebody/secret/images"}})}
    )
    assert "somebody" in changed.to_yaml()
    assert "somebody" not in changed.to_yaml(shortens_paths=True)
    assert ".../images" in changed.to_yaml(shortens_paths=True)
