"""What the DeepSpeed engines follow and refuse; needs no DeepSpeed."""

from pathlib import Path
from types import SimpleNamespace

import accelerate
import pytest
import torch
import yaml

from simflow_plugin.errors import CheckpointError, ConfigError
from simflow_plugin.objective import JointObjective
from simflow_plugin.train import make_accelerator
from simflow_plugin.training.distributed import deepspeed as engine
from simflow_plugin.training.distributed import processes
from simflow_plugin.training.distributed.deepspeed import (
    DeepSpeedEngine,
    check_settings,
    check_version,
    run_settings,
)
from simflow_plugin.training.distributed.deepspeed_zero3 import Zero3Engine
from simflow_plugin.training.distributed.processes import process_group_options
from tests.training.tiny_runs import make_trainer, tiny_config, tiny_values

FILES = Path(__file__).parents[3] / "configs" / "accelerate"


def settings(**changes):
    """DeepSpeed's settings as accelerate reads them from a shipped file, with `changes`."""
    plain = {"gradient_clipping": "auto", "gradient_accumulation_steps": "auto", "train_batch_size": "auto"}
    return {**plain, "zero_optimization": {"stage": 2}, "bf16": {"enabled": False}, **changes}


def test_deepspeed_follows_the_run():
    values = tiny_values("simflow", batch_size=16, accumulation=2)
    values["optimizer"]["max_grad_norm"] = None
    assert run_settings(tiny_config(values=values), num_processes=4) == {
        "train_batch_size": 16,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 0.0,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gradient_clipping": 0.5}, r"gradient_clipping is 0\.5, the run's configuration says 1\.0"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps is 4.*says 1"),
        ({"train_batch_size": 64}, "train_batch_size is 64.*says 8"),
        ({"optimizer": {"type": "Adam"}}, "optimizer: decided by the section `optimizer`"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler: decided by `optimizer.schedule`"),
        ({"torch_autocast": {"enabled": True}}, "torch_autocast: decided by `training.precision`"),
        (
            {"fp16": {"enabled": True}},
            "training.precision: float16 is not supported with DeepSpeed.*bfloat16",
        ),
        ({"zero_optimization": {"stage": 0}}, r"zero_stage is 0.*ddp\.yaml"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
            "offload_optimizer to cpu replaces the optimizer.*offload_optimizer_device: none",
        ),
    ],
)
def test_setting_against_the_run_is_refused_by_name(changes, message):
    ours = run_settings(tiny_config("simflow"), num_processes=2)
    check_settings(settings(), ours)
    with pytest.raises(ConfigError, match=message):
        check_settings(settings(**changes), ours)


def test_deepspeed_in_another_precision_is_refused(monkeypatch):
    """As accelerate reports it where DeepSpeed's own file enables bf16."""
    monkeypatch.setattr(accelerate, "Accelerator", lambda **options: SimpleNamespace(mixed_precision="bf16"))
    with pytest.raises(ConfigError, match=r"training\.precision: the run computes in float32, .*say bf16"):
        make_accelerator(tiny_config(precision="float32"))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_shipped_file_names_its_stage_and_nothing_that_is_refused(stage):
    file = yaml.safe_load((FILES / f"deepspeed_zero{stage}.yaml").read_text())
    assert file["distributed_type"] == "DEEPSPEED"
    assert file["deepspeed_config"] == {
        "zero_stage": stage,
        "zero3_init_flag": False,
        "offload_optimizer_device": "none",
        "offload_param_device": "none",
    }


def test_older_deepspeed_is_refused(monkeypatch):
    monkeypatch.setattr(engine.metadata, "version", lambda name: "0.18.5+cpu")
    with pytest.raises(ConfigError, match=r"deepspeed 0\.18\.5\+cpu is older than 0\.19\.8.*pip install"):
        check_version()


def test_deepspeed_without_its_packages_says_what_to_install(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr(processes, "find_spec", lambda name: None if name == "transformers" else name)
    with pytest.raises(
        ConfigError, match=r"needs transformers\. Run: pip install 'simflow-plugin\[deepspeed\]'"
    ):
        process_group_options(has_gpu=True)


def test_deepspeed_with_use_cpu_is_refused_instead_of_dropped(monkeypatch):
    monkeypatch.setattr(processes, "find_spec", lambda name: name)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert process_group_options(has_gpu=False)["kwargs_handlers"][0].backend == "gloo"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(ConfigError, match="use_cpu: false"):
        process_group_options(has_gpu=False)


@pytest.mark.parametrize(
    ("model", "alignment", "expected"),
    [
        ("simflow", None, False),
        ("simflow", {"weight": 0.5, "autoencoder_weight": 0.5}, False),
        ("simflow", {"weight": 0.5, "autoencoder_weight": 1.5}, True),
        ("sit", {"weight": 0.5, "autoencoder_weight": 0.5}, True),
        ("starflow", None, False),
    ],
)
def test_objective_knows_whether_it_goes_back_twice(tmp_path, model, alignment, expected):
    """What DeepSpeed ZeRO 3 refuses: a gradient taken within `forward`, watched as it is taken."""
    values = tiny_values(model, steps=2)
    values["autoencoder"]["trainable"] = "none" if model == "starflow" else "full"
    if alignment is not None:
        values["alignment"] = {"encoder": "toy", "projector_dim": 8, **alignment}
    trainer = make_trainer(tiny_config(values=values), tmp_path / "run")
    assert trainer.joint.needs_inner_gradient(alignment is not None) is expected
    taken, grad = [], torch.autograd.grad
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.autograd, "grad", lambda *a, **k: taken.append(1) or grad(*a, **k))
        trainer._train_step(iter(trainer._loader()))
    assert bool(taken) is expected


def test_objective_that_goes_back_twice_is_refused_under_zero3():
    class Twice(JointObjective):
        def __init__(self):
            torch.nn.Module.__init__(self)

        def needs_inner_gradient(self, has_features):
            return has_features

    zero3 = Zero3Engine.__new__(Zero3Engine)
    zero3._has_features = True
    with pytest.raises(ConfigError, match=r"alignment: .*one backward pass only.*fsdp2_zero3\.yaml"):
        zero3.prepare(Twice(), None)


def test_pieces_of_a_parameter_are_filled_up_to_one_size():
    zero3, whole = Zero3Engine.__new__(Zero3Engine), torch.arange(5.0)
    pieces = []
    for rank in range(4):
        zero3.accelerator = SimpleNamespace(process_index=rank)
        pieces.append(zero3._cut(whole, torch.zeros(2)).tolist())
    assert pieces == [[0, 1], [2, 3], [4, 0], [0, 0]]


def test_optimizer_state_with_two_step_counts_is_refused(tmp_path):
    trainer = make_trainer(tiny_config("simflow"), tmp_path / "run")
    names = list(trainer.engine.averaged())[:2]
    tensors = {f"{name}/step": torch.tensor(float(index)) for index, name in enumerate(names)}
    with pytest.raises(CheckpointError, match=r"run: .*different numbers of optimizer steps, \[0\.0, 1\.0\]"):
        DeepSpeedEngine.restore_optimizer(trainer.engine, tensors, tmp_path / "run")
