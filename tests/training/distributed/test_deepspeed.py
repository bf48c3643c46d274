"""DeepSpeed ZeRO on two CPU processes (gloo), launched with the shipped files, against one process without it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simflow_plugin.runs.checkpoints import latest_checkpoint
from simflow_plugin.training.interrupts import Interrupted
from tests.training.distributed.test_processes import (
    PLAIN,
    WITH_ADVERSARY,
    WITH_ALIGNMENT,
    assert_same_losses,
)
from tests.training.tiny_runs import (
    StopAfter,
    losses_of,
    make_trainer,
    poison_images,
    tensors_of,
    tiny_config,
    tiny_values,
)

FILES = Path(__file__).parents[3] / "configs" / "accelerate"
VALUES = {
    "whole": PLAIN,
    "adversary": WITH_ADVERSARY,
    "alignment": WITH_ALIGNMENT,
    "accumulation": tiny_values("starflow", log_every=1, accumulation=2),
    "skipped": PLAIN,
    "bfloat16": PLAIN,
    "grown": PLAIN,
}
KILLED = tiny_values("simflow", log_every=1, checkpoint_every=2)
COMMON = [
    *({"name": name, "values": VALUES[name]} for name in ("adversary", "grown")),
    {"name": "skipped", "values": PLAIN, "poisoned_steps": [2]},
    {"name": "shrunk", "values": PLAIN, "stop_after": 3},
]
ACCUMULATED = {"name": "accumulation", "values": VALUES["accumulation"]}
WHOLE = {"name": "whole", "values": PLAIN}
LOWER_PRECISION = {"name": "bfloat16", "values": PLAIN, "precision": "bf16"}
RUNS = {
    "zero1": [{"name": name, "values": VALUES[name]} for name in ("adversary", "grown")],
    "zero2": [
        *COMMON,
        WHOLE,
        ACCUMULATED,
        LOWER_PRECISION,
        {"name": "alignment", "values": VALUES["alignment"]},
        {"name": "resumed", "values": KILLED, "kill_after": 5},
    ],
    "zero3": [
        *COMMON,
        WHOLE,
        ACCUMULATED,
        LOWER_PRECISION,
        {"name": "resumed", "values": KILLED, "stop_after": 3},
        {"name": "resumed", "values": KILLED},
    ],
}


def launch(file, out, runs):
    """Train `runs` on two processes, as a user would launch them."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FILES / file)]
    command += ["--num_processes", "2", "--main_process_port", "0"]
    command += ["-m", "tests.training.worker", str(out), json.dumps(runs)]
    root = str(Path(__file__).parents[3])
    on_cpu = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    environment = {**os.environ, **on_cpu, "PYTHONPATH": root}
    return subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Folder of the same runs by one process, without DeepSpeed."""
    pytest.importorskip("deepspeed")
    pytest.importorskip("transformers")
    out = tmp_path_factory.mktemp("one")
    for name, values in VALUES.items():
        trainer = make_trainer(tiny_config(values=values), out / name)
        if name == "skipped":
            poison_images(trainer, {2})
        trainer.train()
    return out


@pytest.fixture(scope="module")
def two(request, one, tmp_path_factory):
    """Folder of the runs of one stage on two processes."""
    stage = request.param
    out = tmp_path_factory.mktemp(stage)
    with pytest.raises(Interrupted):
        make_trainer(tiny_config(values=PLAIN), out / "grown", StopAfter(3)).train()
    result = launch(f"deepspeed_{stage}.yaml", out, RUNS[stage])
    if stage == "zero2":
        assert result.returncode != 0, "the last run was to be killed"
        assert latest_checkpoint(out / "resumed" / "checkpoints").step == 4
        result = launch(f"deepspeed_{stage}.yaml", out, [{"name": "resumed", "values": KILLED}])
    if stage == "zero3":
        assert "resumed stopped by another process after step 3" in result.stdout
    assert result.returncode == 0, result.stderr
    return out


def in_stages(*stages):
    return pytest.mark.parametrize("two", stages, indirect=True)


@in_stages("zero1", "zero2", "zero3")
def test_two_processes_give_the_losses_of_one(one, two):
    compared = [
        name for name in ("whole", "adversary", "alignment", "accumulation", "grown") if (two / name).exists()
    ]
    for name in compared:
        rows, reference = losses_of(two / name), losses_of(one / name)
        for key in set(reference[0]) & {"loss", "l2", "nll", "alignment", "discriminator", "grad_norm", "lr"}:
            expected = pytest.approx([row[key] for row in reference], rel=1e-5)
            assert [row[key] for row in rows] == expected, (name, key)


@in_stages("zero1", "zero2", "zero3")
def test_checkpoint_is_that_of_one_process(one, two):
    """Same files, same names, same tensors: weights, averages, both optimizers, up to rounding."""
    ours, reference = tensors_of(two / "adversary"), tensors_of(one / "adversary")
    assert ours.keys() == reference.keys()
    for name, tensor in reference.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


@in_stages("zero2", "zero3")
def test_sample_grid_is_that_of_one_process(one, two):
    ours, reference = (pixels(out / "adversary" / "samples" / "step_00000006.png") for out in (two, one))
    assert (ours - reference).abs().max() <= 2


@in_stages("zero2", "zero3")
def test_run_of_deepspeed_goes_on_with_one_process(one, two):
    assert [row["step"] for row in losses_of(two / "shrunk")][:3] == [1, 2, 3]
    make_trainer(tiny_config(values=PLAIN), two / "shrunk").train()
    assert_same_losses(one / "whole", two / "shrunk")


@in_stages("zero2", "zero3")
def test_step_that_is_not_finite_on_one_process_is_skipped_by_all(one, two):
    rows, reference = losses_of(two / "skipped"), losses_of(one / "skipped")
    assert [row["skipped_steps"] for row in rows] == [0, 0, 1, 1, 1, 1]
    finite = [index for index in range(6) if index != 2]
    for key in ("loss", "grad_norm"):
        ours, theirs = ([table[index][key] for index in finite] for table in (rows, reference))
        assert ours == pytest.approx(theirs, rel=1e-5), key


@in_stages("zero2", "zero3")
def test_resumed_run_is_bitwise_equal(two):
    """With ZeRO 2 the second process was killed in step 5, with ZeRO 3 it was asked to stop after step 3."""
    assert losses_of(two / "resumed") == losses_of(two / "whole")
    ours, reference = tensors_of(two / "resumed"), tensors_of(two / "whole")
    assert [name for name in reference if not torch.equal(ours[name], reference[name])] == []


@in_stages("zero2", "zero3")
def test_bfloat16_is_autocast_over_float32_weights(two):
    tensors = tensors_of(two / "bfloat16")
    assert {t.dtype for name, t in tensors.items() if name.startswith(("joint/", "optimizer/"))} == {
        torch.float32
    }
    ours, exact = ([row["loss"] for row in losses_of(two / name)] for name in ("bfloat16", "whole"))
    assert ours[0] != exact[0]
    assert ours == pytest.approx(exact, rel=2e-2)


def pixels(file):
    return torch.from_numpy(np.array(Image.open(file))).int()
