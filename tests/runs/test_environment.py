"""environment.json: what is needed to repeat a run, and nobody's name."""

import getpass
import json
import socket
import sys
from pathlib import Path

import torch

from simflow_plugin.runs import environment
from simflow_plugin.runs.environment import command_line, describe_environment, without_names
from simflow_plugin.runs.run_directory import RunDirectory
from simflow_plugin.train import train
from tests.training.tiny_runs import tiny_config


def test_record_names_versions_devices_and_commit():
    record = json.loads(json.dumps(describe_environment(torch.device("cpu"), 2)))
    assert torch.__version__.startswith(record["libraries"]["torch"].partition("+")[0])
    assert record["python"] == ".".join(map(str, sys.version_info[:3]))
    assert record["num_processes"] == 2
    assert record["device"] == "cpu"
    assert "cores" in record["devices"][0]


def test_commit_of_a_checkout_and_none_elsewhere(monkeypatch, tmp_path):
    root = tmp_path / "checkout"
    (root / "simflow_plugin").mkdir(parents=True)
    monkeypatch.setattr(environment, "PACKAGE", root / "simflow_plugin")
    (root / "file").write_text("one")
    identity = ("-c", "user.name=n", "-c", "user.email=e")
    for command in (("init", "-q"), ("add", "file"), (*identity, "commit", "-q", "-m", "m")):
        assert environment._git(root, *command) is not None
    commit = environment.commit_of_package()
    assert len(commit["id"]) == 40
    assert not commit["changed"]
    (root / "file").write_text("two")
    assert environment.commit_of_package() == {**commit, "changed": True}
    # A package inside another project's checkout, in its virtual environment say, is not at that project's commit.
    nested = root / "site" / "simflow_plugin"
    nested.mkdir(parents=True)
    monkeypatch.setattr(environment, "PACKAGE", nested)
    monkeypatch.setattr(environment.metadata, "distribution", lambda name: Installed())
    assert environment.commit_of_package() == {"id": "abc", "changed": False}


class Installed:
    """A distribution that pip installed from a repository."""

    def read_text(self, name):
        return json.dumps({"url": "u", "vcs_info": {"vcs": "git", "commit_id": "abc"}})


def test_command_holds_neither_user_nor_machine(monkeypatch):
    monkeypatch.setattr(getpass, "getuser", lambda: "alice")
    monkeypatch.setattr(socket, "gethostname", lambda: "node17")
    monkeypatch.setattr(Path, "home", lambda: Path("/homes/alice"))
    text = command_line(
        [
            "/homes/alice/venv/bin/simflow",
            "train",
            "/homes/alice/my.yaml",
            "--out=/scratch/alice/run",
            "/home/bob/x",
            "data.root=/node17/malice",
        ]
    )
    assert text == "simflow train ~/my.yaml --out=/scratch/USER/run ~/x data.root=/HOST/malice"
    module = str(Path(environment.PACKAGE) / "train.py")
    assert command_line([module, "--config", "a"]) == "python -m simflow_plugin.train --config a"
    assert without_names("nothing here") == "nothing here"


def test_every_start_of_a_run_adds_a_record(tmp_path):
    run = RunDirectory(tmp_path / "run")
    config = tiny_config(steps=2, sample_every=2, checkpoint_every=2)
    train(config, run, [], report=False)
    train(config, run, [], report=False)
    records = json.loads(run.environment_file.read_text())
    assert len(records) == 2
    assert records[0]["libraries"] == records[1]["libraries"]
    assert socket.gethostname() not in run.environment_file.read_text()
