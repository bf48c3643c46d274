"""Configurations, and the runs of others."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import yaml

from tools.attack.target import MARKER, Attack, Target, verdict


def attack_configurations(target: Target, rng: random.Random) -> Attack:
    """Configurations that would run a command, leave their folder, never end, or hold surprising values."""
    marker = target.work / f"{MARKER}-config"
    pipe = "extends: quickstart\nevaluation: {judge: none}\n"
    pipe += f"data: {{name: webdataset, shards: 'pipe:touch {marker}'}}\n"
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
    )
    refused = {
        "aliases": bomb,
        "recursive alias": "a: &a [*a]\n",
        "python tag": "training: !!python/object/apply:os.system ['true']\n",
        "name: ../../x": "extends: quickstart\nname: ../../x\n",
        "name: absolute": "extends: quickstart\nname: /tmp/x\n",
        "steps: true": "extends: quickstart\ntraining: {steps: true}\n",
        "steps: 1:30": "extends: quickstart\ntraining: {steps: 1:30}\n",
        "steps: 010": "extends: quickstart\ntraining: {steps: 010}\n",
        "steps: -1": "extends: quickstart\ntraining: {steps: -1}\n",
        "steps: .inf": "extends: quickstart\ntraining: {steps: .inf}\n",
        "lr: .nan": "extends: quickstart\noptimizer: {lr: .nan}\n",
        "batch_size: 10**12": "extends: quickstart\ntraining: {batch_size: 1000000000000}\n",
        "num_workers: 100000": "extends: quickstart\ntraining: {num_workers: 100000}\n",
        "image_size: 10**9": "extends: quickstart\nimage_size: 1000000000\n",
        "width: 10**9": "extends: quickstart\nmodel: {flow: {width: 1000000000}}\n",
        "duplicate key": "extends: quickstart\nname: a\nname: b\n",
        "extends itself": "extends: attacked.yaml\n",
        "not a mapping": "- 1\n- 2\n",
        "empty": "",
        "binary": "\x00\x01\x02",
        "deep": "[" * 5000 + "]" * 5000,
        "unknown key": "extends: quickstart\ntraning: {steps: 3}\n",
        "key that is no text": "extends: quickstart\n? [1, 2]\n: 3\n",
    }
    file = target.work / "attacked.yaml"
    file.write_text("extends: quickstart\n")
    yield "undamaged", verdict(*target.simflow("config", "show", file), allowed=(0,))
    for name, text in refused.items():
        file.write_text(text)
        status, output = target.simflow("config", "show", file)
        wrong = verdict(status, output)
        yield name, wrong or ("accepted" if status == 0 else None)
    file.write_text(pipe)
    for reading in (("config", "show", file), ("plan", file)):
        status, output = target.simflow(*reading)
        yield (
            f"pipe in {reading[0]}",
            "the command ran" if marker.exists() else verdict(status, output, allowed=(0,)),
        )
        marker.unlink(missing_ok=True)
    yield "pipe in train", _piped(marker, *target.simflow("train", file, "--out", target.work / "piped"))
    marker.unlink(missing_ok=True)
    run = target.work / "foreign"
    shutil.copytree(target.run, run)
    config = run / "config.yaml"
    values = yaml.safe_load(config.read_text())
    values["data"] = {"name": "webdataset", "shards": f"pipe:touch {marker}"}
    values["evaluation"]["judge"] = None
    config.write_text(yaml.safe_dump(values))
    command = ("evaluate", run, "--only", "likelihood")
    yield "pipe of a foreign run in evaluate", _piped(marker, *target.simflow(*command))
    marker.unlink(missing_ok=True)
    status, output = target.simflow("sample", run, "--num", "4", "--out", target.work / "foreign samples")
    yield "pipe of a foreign run in sample", "the command ran" if marker.exists() else verdict(status, output)


def _piped(marker: Path, status: int | str, output: str) -> str | None:
    """Return why a command that was given a pipe did not survive it: it must be refused, and for the pipe."""
    if marker.exists():
        return "the command ran"
    return verdict(status, output, allowed=(2,)) or (
        None if "pipe" in output else "refused for another reason"
    )
