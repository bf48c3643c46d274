"""Plans: of every shipped configuration, by formulas that can be done by hand."""

import functools
import re

import pytest
import torch

from simflow_plugin.cli.plan import readable_seconds
from simflow_plugin.config.loading import load_config
from simflow_plugin.config.yaml_source import shipped_configs
from simflow_plugin.errors import ConfigError
from simflow_plugin.planning.estimate import GPUS, Setting, make_plan
from simflow_plugin.planning.on_cuda import MixedPrecision
from simflow_plugin.starter.trial_steps import Timing
from tests.commands import succeed
from tests.training.tiny_runs import make_trainer, tiny_config, tiny_values


@functools.cache
def plan_of(name, *overrides, **setting):
    return make_plan(load_config(name, list(overrides)), Setting(**setting))


@pytest.mark.parametrize("name", shipped_configs())
def test_every_shipped_configuration_can_be_planned(name):
    plan = plan_of(name, devices=1)
    assert plan.trained > 0
    assert all(count > 0 for count in plan.flops.values())
    assert plan.days > 0
    assert plan.state_bytes > 4 * plan.trained


@pytest.mark.parametrize(
    ("name", "published", "tolerance"),
    [
        ("simflow", 1.4e9, 0.04),
        ("starflow_xxl", 1.4e9, 0.02),
        ("simflow_l", 475e6, 0.005),
        ("sit_xl2", 675e6, 0.01),
    ],
)
def test_published_sizes_are_met(name, published, tolerance):
    """That of SimFlow is inferred; that of SimFlow-L is MIMFlow's."""
    found = plan_of(f"imagenet256/{name}", devices=1).parameters["model"]
    assert found == pytest.approx(published, rel=tolerance)


def test_planned_memory_is_near_the_published_one():
    """MIMFlow measured SimFlow-L at 52.3 GB with 16 images a GPU; allocator and workspaces are not planned."""
    plan = plan_of("imagenet256/simflow_l", "training.batch_size=128", devices=8)
    assert 0.8 * 52.3e9 < plan.state_bytes + plan.activation_bytes < 52.3e9


def test_flow_costs_eight_flops_a_parameter_and_token():
    """2 forward, 4 backward, 2 again with activation checkpointing; attention and the frozen VAE come on top."""
    plan = plan_of("imagenet256/starflow_xxl", devices=1)
    by_hand = 8 * plan.parameters["model"] * 256
    (counted,) = plan.flops.values()
    assert by_hand < counted < 1.2 * by_hand


def test_days_follow_their_formula():
    plan = plan_of("imagenet256/simflow", devices=4, gpu="a100", utilisation=0.5)
    training = load_config("imagenet256/simflow").training
    seconds = sum(plan.flops.values()) * training.batch_size * training.steps / (4 * GPUS["a100"].flops * 0.5)
    assert plan.days == pytest.approx(seconds / 86400)


def test_small_model_is_bound_by_its_launches():
    """Its arithmetic would take seconds for all steps; no host starts thousands of kernels a step in that time."""
    plan, training = plan_of("quickstart", devices=8), load_config("quickstart").training
    assert plan.launches > 500
    assert plan.launch_seconds > 10 * plan.compute_seconds
    assert plan.days == pytest.approx(training.steps * plan.launches * 5e-6 / 86400)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2e-5, "20 us"), (0.0123, "12.3 ms"), (19, "19 s"), (5400, "1.5 hours"), (2e5, "2.31 days")],
)
def test_durations_have_readable_units(seconds, text):
    assert readable_seconds(seconds) == text


def test_sharding_saves_what_the_formulas_say():
    whole, optimizer, everything = (
        plan_of("quickstart", devices=8, sharding=kind) for kind in ("none", "zero2", "zero3")
    )
    assert whole.state_bytes == 20 * whole.trained
    assert optimizer.state_bytes == (8 + 12 / 8) * whole.trained
    assert everything.state_bytes < optimizer.state_bytes


def test_grid_of_samples_counts_the_copy_that_averages_need():
    """AdamW, averages and weights: 16 bytes; their copy 4, DDP's buckets 4, or with FSDP the whole model once."""
    alone, ddp, sharded = (
        plan_of("quickstart", devices=devices, sharding=kind)
        for devices, kind in ((1, "none"), (8, "none"), (8, "zero3"))
    )
    assert alone.grid_bytes == 20 * alone.trained
    assert ddp.grid_bytes == 24 * ddp.trained
    assert sharded.grid_bytes == (16 / 8 + 4) * sharded.trained
    assert ddp.peak_bytes == max(ddp.grid_bytes, ddp.state_bytes + ddp.activation_bytes)


def test_a_guide_of_the_grids_is_held_beside_the_model():
    alone = plan_of("quickstart", devices=1)
    guided = plan_of("quickstart", "sampling.autoguidance=@1000", devices=1)
    assert guided.grid_bytes - alone.grid_bytes == 4 * alone.parameters["model"]
    assert guided.state_bytes - alone.state_bytes == 4 * alone.parameters["model"]


def test_average_without_the_autoencoder_is_planned_without_it():
    """SiT with REPA-E leaves the autoencoder out, unless told otherwise."""
    out, included = (
        plan_of("imagenet256/sit_xl2_repa_e", f"training.ema.includes_autoencoder={value}", devices=1)
        for value in ("null", "true")
    )
    assert included.state_bytes - out.state_bytes == 4 * out.parameters["autoencoder"]


def test_measured_steps_are_extrapolated_beside_the_plan(monkeypatch):
    asked = []
    timing = Timing(0.03, 2.0, 80, peak_bytes=3 * 10**9, device="CPU-like H100", device_type="cuda")
    monkeypatch.setattr(
        "simflow_plugin.starter.trial_steps.time_here", lambda config: asked.append(config) or timing
    )
    changes = ["--set", "training.steps=100000", "--set", "training.sample_every=10000"]
    output = succeed("plan", "quickstart", "--devices", 4, "--measure", *changes)
    assert asked[0].training.batch_size == load_config("quickstart").training.batch_size // 4
    assert "peak memory of the allocator" in output
    assert "measured on CPU-like H100: one of 4 devices" in output
    assert "3.00 GB" in output
    assert readable_seconds(100_000 * 0.03 + 10 * 2.0) in output


def test_checkpointing_keeps_fewer_activations():
    kept = plan_of("imagenet256/starflow_xxl", devices=1).activation_bytes
    all_of_them = plan_of("imagenet256/starflow_xxl", "model.flow.activation_checkpointing=false", devices=1)
    assert kept < 0.2 * all_of_them.activation_bytes


def test_parameters_are_those_of_the_run_itself(tmp_path):
    values = {**tiny_values("simflow"), "objective": {"adversarial": {"width": 8, "num_layers": 1}}}
    config = tiny_config(values=values)
    trainer = make_trainer(config, tmp_path / "run")
    plan = make_plan(config, Setting(devices=1))
    count = sum(
        p.numel() for m in (trainer.joint, trainer.adversary.loss) for p in m.parameters() if p.requires_grad
    )
    assert plan.trained == count


def test_command_prints_the_formula_and_what_it_assumed():
    output = succeed("plan", "imagenet256/sit_xl2", "--gpu", "h200", "--devices", 16)
    assert re.search(r"[\d.]+ [GT]FLOPs x 256 images / \(16 x 989 TFLOP/s x 0\.4\) =", output)
    assert "the longer of both x 7000000 steps =" in output
    assert "of 141 GB" in output
    assert "1000 classes are assumed" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gpu": "h10"}, "Did you mean `h100`"),
        ({"sharding": "zero1"}, "Known: none, zero2, zero3"),
        ({"utilisation": 0.0}, "--utilisation in"),
    ],
)
def test_bad_setting_is_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Setting(**arguments)


def test_batch_that_devices_cannot_share_is_refused():
    with pytest.raises(ConfigError, match="256 is not divisible by 7 devices"):
        plan_of("imagenet256/simflow", devices=7)


def test_activations_of_mixed_precision_are_kept_in_the_types_of_autocast():
    """Products keep their input and weight in bfloat16, a group norm its input in float32; by hand."""
    network = torch.nn.Sequential(torch.nn.GroupNorm(1, 4), torch.nn.Conv2d(4, 8, 1, bias=False)).to("meta")
    images = torch.zeros(2, 4, 3, 3, device="meta", requires_grad=True)
    kept = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)
    with hooks, MixedPrecision(torch.bfloat16):
        output = network(images)
    assert output.dtype == torch.bfloat16
    kinds = {(tuple(tensor.shape), tensor.dtype) for tensor in kept if tensor.dim() == 4}
    norm_input, product_input = ((2, 4, 3, 3), torch.float32), ((2, 4, 3, 3), torch.bfloat16)
    assert kinds == {norm_input, product_input, ((8, 4, 1, 1), torch.bfloat16)}


def test_activations_grow_linearly_with_the_micro_batch():
    few, many = (plan_of("imagenet256/simflow_l", devices=devices).activation_bytes for devices in (32, 8))
    assert 3 * few < many < 4 * few  # casts of the weights are kept once


def test_mixed_precision_keeps_more_than_half_of_what_float32_keeps():
    """Norms, and the perceptual loss, stay in float32: half of everything was 1.6 times too little."""
    mixed, whole = (
        plan_of("imagenet256/simflow_l", f"training.precision={kind}", devices=8).activation_bytes
        for kind in ("bfloat16", "float32")
    )
    assert 0.6 * whole < mixed < 0.9 * whole
