"""Checkpoints with damaged files: passed over or refused by one clear error. SIMFLOW_FUZZ=N tries N times as many."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from simflow_plugin.errors import CheckpointError
from simflow_plugin.runs.checkpoints import latest_checkpoint, save_checkpoint
from tests.fuzz.mutations import mutants
from tests.training.test_foreign_checkpoints import sign

TIMES = int(os.environ.get("SIMFLOW_FUZZ", "1"))
FILES = ("state.json", "manifest.json", "joint.safetensors", "optimizer.safetensors")
STATE = {
    "seconds": 1.0,
    "run_id": "a",
    "bad_steps": {"skipped_steps": [0, 0]},
    "scaler": None,
    "num_classes": 3,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors = {"joint": {"w": torch.ones(4, 3)}, "optimizer": {"w/step": torch.tensor(1.0)}}
    return save_checkpoint(tmp_path_factory.mktemp("whole"), 7, tensors, STATE)


@pytest.mark.parametrize("is_signed", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_no_damaged_file_ends_in_anything_but_one_clear_error(
    whole: Path, tmp_path: Path, name: str, is_signed: bool
) -> None:
    random = np.random.default_rng([*name.encode(), is_signed])
    content, outcomes = (whole / name).read_bytes(), set()
    for damaged in mutants(content, 60 * TIMES, random):
        folder = tmp_path / "checkpoints"
        shutil.copytree(whole, folder / whole.name)
        (folder / whole.name / name).write_bytes(damaged)
        if is_signed and name != "manifest.json":
            sign(folder / whole.name)
        outcomes.add(outcome(folder, damaged == content))
        shutil.rmtree(folder)
    assert outcomes in ({"refused"}, {"refused", "read"})


def outcome(folder: Path, is_whole: bool) -> str:
    try:
        checkpoint = latest_checkpoint(folder)
        assert checkpoint is not None
        tensors = {name: checkpoint.tensors(name) for name in ("joint", "optimizer")}
    except CheckpointError:
        return "refused whole" if is_whole else "refused"
    assert checkpoint.step == 7
    assert {name: len(held) for name, held in tensors.items()} == {"joint": 1, "optimizer": 1}
    return "read"
