"""DeepSpeed ZeRO on two CPU processes (gloo), launched with the shipped files; what it refuses is tested without it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from simflow_plugin.engine.interrupts import Interrupted
from tests.engine.test_processes import PLAIN, WITH_ADVERSARY, assert_same_losses
from tests.engine.tiny_runs import (
    StopAfter,
    losses_of,
    make_trainer,
    poison_images,
    tensors_of,
    tiny_config,
    tiny_values,
)

FILES = Path(__file__).parents[2] / "configs" / "accelerate"
VALUES = {
    "whole": PLAIN,
    "adversary": WITH_ADVERSARY,
    "alignment": {
        **PLAIN,
        "alignment": {"encoder": "toy", "projector_dim": 8, "autoencoder_weight": 1.5},
    },
    "accumulation": tiny_values("starflow", log_every=1, accumulation=2),
    "skipped": PLAIN,
    "bfloat16": PLAIN,
    "grown": PLAIN,
}
KILLED = tiny_values("simflow", log_every=1, checkpoint_every=2)
FIRST = [
    *(
        {"name": name, "values": values}
        for name, values in VALUES.items()
        if name not in ("skipped", "bfloat16")
    ),
    {"name": "skipped", "values": PLAIN, "poisoned_steps": [2]},
    {"name": "bfloat16", "values": PLAIN, "precision": "bf16"},
    {"name": "shrunk", "values": PLAIN, "stop_after": 3},
    {"name": "killed", "values": KILLED, "kill_after": 5},
]


def launch(file, out, runs):
    """Train `runs` on two processes, as a user would launch them."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FILES / file)]
    command += ["--num_processes", "2", "--main_process_port", "0"]
    command += ["-m", "tests.engine.worker", str(out), json.dumps(runs)]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": root}
    return subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder of all runs: `NAME` with ZeRO-2 on two processes, `one/NAME` by one process without DeepSpeed."""
    pytest.importorskip("deepspeed")
    pytest.importorskip("transformers")
    out = tmp_path_factory.mktemp("runs")
    for name, values in VALUES.items():
        trainer = make_trainer(tiny_config(values=values), out / "one" / name)
        if name == "skipped":
            poison_images(trainer, {2})
        trainer.train()
    with pytest.raises(Interrupted):
        make_trainer(tiny_config(values=PLAIN), out / "grown", StopAfter(3)).train()
    first = launch("deepspeed_zero2.yaml", out, FIRST)
    assert first.returncode != 0, "the last run was to be killed"
    second = launch("deepspeed_zero2.yaml", out, [{"name": "killed", "values": KILLED}])
    assert second.returncode == 0, second.stderr
    return out


@pytest.mark.parametrize("name", ["whole", "adversary", "alignment", "accumulation", "grown"])
def test_zero2_on_two_processes_gives_the_losses_of_one(runs, name):
    rows, reference = losses_of(runs / name), losses_of(runs / "one" / name)
    for key in set(reference[0]) & {"loss", "l2", "nll", "alignment", "grad_norm", "lr"}:
        assert [row[key] for row in rows] == pytest.approx([row[key] for row in reference], rel=1e-5), key


def test_discriminator_beside_deepspeed_gives_the_losses_of_one_process(runs):
    ours, reference = (losses_of(runs / folder / "adversary")[2:] for folder in (".", "one"))
    assert [r["discriminator"] for r in ours] == pytest.approx(
        [r["discriminator"] for r in reference], rel=1e-5
    )


def test_checkpoint_of_deepspeed_is_that_of_one_process(runs):
    """Same files, same names, same tensors: weights, averages, both optimizers, up to rounding."""
    ours, reference = tensors_of(runs / "adversary"), tensors_of(runs / "one" / "adversary")
    assert ours.keys() == reference.keys()
    for name, tensor in reference.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-5, msg=name, check_stride=False)


def test_run_of_deepspeed_goes_on_with_one_process(runs):
    assert [row["step"] for row in losses_of(runs / "shrunk")][:3] == [1, 2, 3]
    make_trainer(tiny_config(values=PLAIN), runs / "shrunk").train()
    assert_same_losses(runs / "one" / "whole", runs / "shrunk")


def test_killed_run_goes_on_bit_for_bit(runs):
    """The second process was killed in step 5, after the checkpoint of step 4."""
    assert losses_of(runs / "killed") == losses_of(runs / "whole")
    ours, reference = tensors_of(runs / "killed"), tensors_of(runs / "whole")
    assert [name for name in reference if not torch.equal(ours[name], reference[name])] == []


def test_step_that_is_not_finite_on_one_process_is_skipped_by_all(runs):
    rows, reference = losses_of(runs / "skipped"), losses_of(runs / "one" / "skipped")
    assert [row["skipped_steps"] for row in rows] == [0, 0, 1, 1, 1, 1]
    for key in ("loss", "grad_norm"):
        finite = [index for index in range(6) if index != 2]
        ours, theirs = ([table[index][key] for index in finite] for table in (rows, reference))
        assert ours == pytest.approx(theirs, rel=1e-5), key


def test_bfloat16_is_autocast_over_float32_weights(runs):
    weights = tensors_of(runs / "bfloat16")
    assert {t.dtype for name, t in weights.items() if name.startswith(("joint/", "optimizer/"))} == {
        torch.float32
    }
    ours, exact = (losses_of(runs / name) for name in ("bfloat16", "whole"))
    assert ours[0]["loss"] != exact[0]["loss"]
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in exact], rel=2e-2)
