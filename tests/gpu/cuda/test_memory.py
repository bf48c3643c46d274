"""The allocator's peak in a training step against `simflow plan`, within a tenth, for every model."""

import gc

import pytest
import torch

from simflow_plugin.planning.estimate import Setting, make_plan
from tests.gpu.cuda.test_runs import trainer_on_cuda
from tests.training.tiny_runs import tiny_config, tiny_values

FLOW = {"width": 512, "layers_per_block": [2, 4], "head_dim": 64, "patch_size": 1}
BACKBONE = {"width": 512, "depth": 6, "num_heads": 8, "patch_size": 1}
MODELS = {"simflow": {"flow": FLOW}, "starflow": {"flow": FLOW}}
MODELS |= {name: {"backbone": BACKBONE} for name in ("sit", "dit")}


def values_with(model, precision):
    """Return a run of a real shape, small: 64 pixels, 256 tokens, some 20 M parameters."""
    values = tiny_values(model, batch_size=16, precision=precision)
    values["image_size"] = 64
    values["autoencoder"] |= {"factor": 4, "widths": [64, 128, 128]}
    values["model"] = {"name": model, **MODELS[model]}
    return values


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", MODELS)
def test_allocated_peak_is_near_the_planned_one(model, precision, tmp_path):
    values = values_with(model, precision)
    plan = make_plan(tiny_config(values=values), Setting(devices=1))
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    trainer = trainer_on_cuda(values, tmp_path / "run")
    batches = iter(trainer._loader())
    for _ in range(2):  # the first makes the optimizer's state
        torch.cuda.reset_peak_memory_stats()
        trainer._train_step(batches)
        trainer.step += 1
    peak = torch.cuda.max_memory_allocated() - before
    print(f"{model} {precision}: {peak / 2**20:.0f} MiB, planned {plan.step_bytes / 2**20:.0f}")
    assert peak == pytest.approx(plan.step_bytes, rel=0.1)
