"""A whole run under autocast: close to float32's, with weights, averages and sums of likelihoods in float32."""

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from simflow_plugin.runs.checkpoints import latest_checkpoint
from simflow_plugin.runs.run_directory import RunDirectory
from simflow_plugin.train import make_accelerator
from tests.training.tiny_runs import losses_of, make_trainer, tiny_config


@pytest.fixture(autouse=True)
def _own_accelerator():
    """accelerate keeps its precision in the process: begin and end without one."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def train(path, precision, model):
    config = tiny_config(model, steps=6, log_every=1, precision=precision)
    trainer = make_trainer(config, path, accelerator=make_accelerator(config))
    trainer.train()
    return trainer


@pytest.mark.parametrize("model", ["simflow", "starflow", "sit", "dit"])
def test_bfloat16_run_follows_the_float32_run(tmp_path, model):
    trainer = train(tmp_path / "half", "bfloat16", model)
    assert trainer.accelerator.mixed_precision == "bf16"
    assert {p.dtype for p in trainer.joint.parameters()} == {torch.float32}
    AcceleratorState._reset_state(reset_partial_state=True)
    train(tmp_path / "full", "float32", model)
    half, full = ([row["loss"] for row in losses_of(tmp_path / name)] for name in ("half", "full"))
    assert half != full
    assert half == pytest.approx(full, rel=0.03)
    saved = latest_checkpoint(RunDirectory(tmp_path / "half").checkpoints).path
    for file in saved.glob("*.safetensors"):
        dtypes = {tensor.dtype for tensor in load_file(file).values() if tensor.is_floating_point()}
        assert dtypes <= {torch.float32}, file.name
