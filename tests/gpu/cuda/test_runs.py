"""Whole runs on CUDA: train with grids, write a checkpoint, resume, load, sample."""

import pytest

from simflow_plugin.flow.sampling import decode_graph
from simflow_plugin.runs.loaded_run import load_run
from simflow_plugin.runs.parts import build_dataset, build_parts
from simflow_plugin.runs.run_directory import RunDirectory
from simflow_plugin.runs.run_precision import choose_kernels
from simflow_plugin.train import make_accelerator
from simflow_plugin.training.interrupts import StopRequest
from simflow_plugin.training.loop import Trainer
from tests.gpu.cuda.counting import IS_NULL
from tests.training.tiny_runs import ADVERSARIAL, losses_of, tiny_config, tiny_values

RUNS = [
    *(("simflow", precision) for precision in ("float32", "bfloat16", "float16")),
    *((model, "bfloat16") for model in ("starflow", "sit", "dit")),
]


def values_of(model, precision, **training):
    """Return a run with every part that touches the device: adversary, guidance, normalised latents."""
    intervals = {name: 2 for name in ("log_every", "sample_every", "checkpoint_every")}
    values = tiny_values(model, **{"steps": 4, "precision": precision, **intervals, **training})
    if model == "simflow":
        values["objective"] = {"adversarial": {**ADVERSARIAL, "start_step": 1}}
    if model == "sit":
        values["model"]["normalizes_latents"] = True
    if model != "starflow":
        values["sampling"]["guidance"] = 1.0
    return values


def trainer_on_cuda(values, path):
    """Return the trainer that `simflow train` builds, in each of its processes."""
    config, run = tiny_config(values=values), RunDirectory(path)
    accelerator = make_accelerator(config)
    if accelerator.is_main_process:
        run.prepare(config, ["training.steps"])
    accelerator.wait_for_everyone()
    dataset = build_dataset(config, "train")
    parts = build_parts(config, dataset.num_classes)
    return Trainer(config, run, parts, dataset, accelerator, StopRequest())


@pytest.mark.parametrize(("model", "precision"), RUNS)
def test_run_trains_resumes_and_samples(model, precision, tmp_path):
    trainer_on_cuda(values_of(model, precision), tmp_path / "run").train()
    resumed = trainer_on_cuda(values_of(model, precision, steps=6), tmp_path / "run")
    resumed.train()
    assert resumed.step == 6
    assert len(decode_graph._KEPT) == 0  # training needs the memory
    assert resumed.device.type == "cuda"
    loaded = load_run(tmp_path / "run")
    tensors = [*loaded.model.parameters(), *loaded.autoencoder.parameters()]
    assert {tensor.device.type for tensor in tensors} == {"cuda"}
    assert len(list((tmp_path / "run" / "samples").glob("*.png"))) == 3


@pytest.mark.parametrize("model", ["simflow", "starflow", "sit", "dit"])
def test_every_operation_of_a_step_has_a_deterministic_kernel(model, tmp_path):
    """torch refuses the others by name. On a real GPU, two runs are equal bit for bit."""
    rows = []
    for name in ("first", "second")[: 1 if IS_NULL else 2]:
        values = values_of(model, "bfloat16", deterministic=True, log_every=1)
        if model in ("simflow", "sit"):
            values["alignment"] = {"encoder": "toy", "layer": 1, "weight": 0.5, "mode": "repa"}
        try:
            trainer_on_cuda(values, tmp_path / name).train()
        finally:
            choose_kernels(deterministic=False)
        rows.append([row["loss"] for row in losses_of(tmp_path / name)])
    assert rows[0]
    if not IS_NULL:
        assert rows[0] == rows[1]
