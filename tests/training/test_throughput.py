"""Throughput hygiene: no waiting for the device between logged steps, compilation, TF32, loss scaling."""

import os
import shutil
import traceback

import pytest
import torch

from simflow_plugin.errors import ConfigError
from simflow_plugin.runs.run_precision import Precision
from simflow_plugin.train import make_accelerator
from simflow_plugin.training import checkpointing
from tests.training.tiny_runs import ADVERSARIAL, losses_of, make_trainer, tiny_config, tiny_values

WAITING = ("item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__int__", "__float__", "__index__")
"""Methods of a tensor that bring a value to the host."""
CPU_ONLY = ("flow/checks.py", "diffusion/embeddings.py")
"""They check the values of what they are given, on the CPU and nowhere else."""


@pytest.mark.parametrize("model", ["simflow", "starflow", "sit", "dit"])
def test_step_never_waits_for_the_device(tmp_path, monkeypatch, model):
    values = tiny_values(model, steps=5, log_every=50, sample_every=50, checkpoint_every=50)
    if model == "simflow":
        values["objective"] = {"adversarial": {**ADVERSARIAL, "start_step": 1}}
    waits = []

    def watch(name):
        original = getattr(torch.Tensor, name)

        def called(self, *args, **kwargs):
            caller = next(
                f for f in reversed(traceback.extract_stack()[:-1]) if "/torch/_tensor" not in f.filename
            )
            if not caller.filename.endswith(CPU_ONLY):
                waits.append(f"{name} in {caller.filename}:{caller.lineno}: {caller.line}")
            return original(self, *args, **kwargs)

        return called

    trainer = make_trainer(tiny_config(values=values), tmp_path / "run")
    batches = list(iter(trainer._loader()))  # reading images is the host's business
    for name in WAITING:
        monkeypatch.setattr(torch.Tensor, name, watch(name))
    remaining = iter(batches)
    for _ in range(5):
        trainer._train_step(remaining)
        trainer.step += 1
    assert not waits, "\n".join(dict.fromkeys(waits))


def test_discriminator_skips_bad_steps_on_the_device(tmp_path):
    values = {**tiny_values("simflow"), "objective": {"adversarial": ADVERSARIAL}}
    trainer = make_trainer(tiny_config(values=values), tmp_path / "run")
    assert all(group["fused"] for group in trainer.adversary.optimizer.param_groups)
    assert all(group["fused"] for group in trainer.optimizer.param_groups)


def assert_compiled_equals_eager(tmp_path):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for compiles in (False, True):
        make_trainer(tiny_config(steps=4, log_every=1, compile=compiles), tmp_path / str(compiles)).train()
    eager, compiled = ([row["loss"] for row in losses_of(tmp_path / name)] for name in ("False", "True"))
    assert compiled == pytest.approx(eager, rel=1e-3)


def test_compiled_run_has_the_losses_of_an_eager_one(tmp_path, monkeypatch):
    """Graphs captured, forward and backward, and run without a code generator."""
    compile_with = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, mode: compile_with(self, backend="aot_eager")
    )
    assert_compiled_equals_eager(tmp_path)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.skipif(
    "SIMFLOW_TEST_INDUCTOR" not in os.environ, reason="a minute of C++ compilation: only if asked for"
)
@pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler"
)
def test_generated_code_has_the_losses_of_an_eager_run(tmp_path):
    assert_compiled_equals_eager(tmp_path)


def test_mode_of_compilation_reaches_every_layer(tmp_path, monkeypatch):
    modes = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, mode: modes.append(mode))
    for compiles in (True, {"mode": "max-autotune"}):
        make_trainer(tiny_config(steps=4, compile=compiles), tmp_path / str(len(modes)))
    assert modes == ["default"] * 2 + ["max-autotune"] * 2  # one layer in each of two blocks
    with pytest.raises(ConfigError, match=r"training\.compile"):
        tiny_config(steps=4, compile={"mode": "fastest"})


def test_compiling_a_run_without_layers_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"training\.compile.*this run has none"):
        make_trainer(tiny_config(None, compile=True), tmp_path / "run")


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_a_switch(monkeypatch, allowed):
    """As on a GPU: elsewhere there is no TF32, and the switch stays off."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    on_gpu = Precision.of_training(tiny_config(tf32=allowed).training, "cuda")
    monkeypatch.setattr(Precision, "of_training", lambda *of: on_gpu)
    try:
        make_accelerator(tiny_config(tf32=allowed))
        assert torch.backends.cuda.matmul.allow_tf32 is allowed
        assert torch.backends.cudnn.allow_tf32 is allowed
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_deterministic_kernels_are_a_switch(monkeypatch):
    """A second run of the process is not bound by what the first chose."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    for wanted in (True, False):
        make_accelerator(tiny_config(deterministic=wanted))
        assert torch.are_deterministic_algorithms_enabled() is wanted
        assert torch.backends.cudnn.deterministic is wanted
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_losses_are_scaled_with_float16_only(precision):
    assert make_accelerator(tiny_config(precision=precision)).scaler is None


def test_loss_scaler_steps_both_optimizers_and_is_updated_once(tmp_path):
    """The float16 path with a scaler on the CPU: the same losses, since a scale is undone before the step."""
    values = {**tiny_values("simflow", steps=4, log_every=1), "objective": {"adversarial": ADVERSARIAL}}
    make_trainer(tiny_config(values=values), tmp_path / "plain").train()
    trainer = make_trainer(tiny_config(values=values), tmp_path / "scaled")
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    trainer.train()
    plain, scaled = ([row["loss"] for row in losses_of(tmp_path / name)] for name in ("plain", "scaled"))
    assert scaled == pytest.approx(plain, rel=1e-4)
    assert trainer.accelerator.scaler.get_scale() == 2048.0
    trainer.accelerator.scaler = None


def test_last_checkpoint_is_read_only_to_stop(tmp_path, monkeypatch):
    """Verifying a checkpoint reads all of it: not something for every row of the log."""
    reads = []
    original = checkpointing.latest_checkpoint
    monkeypatch.setattr(
        checkpointing, "latest_checkpoint", lambda folder: reads.append(folder) or original(folder)
    )
    make_trainer(tiny_config(steps=4, log_every=1, checkpoint_every=1), tmp_path / "run").train()
    assert len(reads) == 1
