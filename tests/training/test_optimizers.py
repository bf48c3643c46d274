"""Optimizer groups, schedule, clipping, and steps that skip themselves."""

import json
import math

import pytest
import torch
from torch import nn

from simflow_plugin import registry
from simflow_plugin.config.schema import Optimizer
from simflow_plugin.contracts import ModelContext
from simflow_plugin.errors import TrainingError
from simflow_plugin.registry import Part
from simflow_plugin.training.optimizers import (
    Clipping,
    StepOutcome,
    clip_and_check,
    learning_rate_ratio,
    make_optimizer,
    parameter_groups,
    step_if_finite,
)
from simflow_plugin.training.stability import BadSteps, poison_if_not_finite

CPU = torch.device("cpu")


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 1))


@pytest.mark.parametrize("name", ["simflow", "sit", "dit", "starflow"])
def test_only_weights_of_linear_maps_and_convolutions_are_decayed(name):
    small = {"width": 32, "layers_per_block": [1, 1], "head_dim": 16}
    options = {"flow": small} if "flow" in name else {"backbone": {"width": 32, "depth": 1, "num_heads": 2}}
    model = Part.model_validate({"name": name, **options}).build(registry.MODELS, ModelContext((4, 4, 4), 10))
    groups = parameter_groups({"model": model}, Optimizer(weight_decay=0.1))
    names = {id(p): n for n, p in model.named_parameters()}
    decayed = {names[id(p)] for g in groups if g["weight_decay"] > 0 for p in g["params"]}
    assert decayed
    assert all(n.endswith("weight") for n in decayed)
    assert not any(
        word in n for n in decayed for word in ("start", "table", "position", "norm", "embed_label")
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(len(g["params"]) for g in groups) == len(trained)


def test_autoencoder_has_its_own_learning_rate():
    groups = parameter_groups(
        {"autoencoder": small_network(), "model": small_network()}, Optimizer(lr=1e-3, autoencoder_lr=1e-4)
    )
    assert {g["lr"] for g in groups} == {1e-3, 1e-4}


def test_schedule_warms_up_then_follows_the_cosine_to_its_end():
    config = Optimizer(schedule="cosine", warmup_steps=10, final_lr_ratio=0.1)
    assert learning_rate_ratio(0, 110, config) == pytest.approx(0.1)
    assert learning_rate_ratio(10, 110, config) == pytest.approx(1.0)
    assert learning_rate_ratio(60, 110, config) == pytest.approx(0.55)
    assert learning_rate_ratio(110, 110, config) == pytest.approx(0.1)


def two_parts():
    """Gradients of norm 39 and 0.43, as those of a VAE and a flow may begin."""
    parts = {"autoencoder": small_network(), "model": small_network()}
    for part, norm in ((parts["autoencoder"], 39.0), (parts["model"], 0.43)):
        part(torch.ones(2, 4)).sum().backward()
        nn.utils.clip_grads_with_norm_(part.parameters(), norm, torch.tensor(gradient_norm(part)))
        scale = norm / gradient_norm(part)
        for parameter in part.parameters():
            parameter.grad.mul_(scale)
    return parts


def gradient_norm(module):
    return math.sqrt(sum(float(p.grad.double().square().sum()) for p in module.parameters()))


@pytest.mark.parametrize(
    ("scope", "autoencoder", "model"), [("per_part", 1.0, 0.43), ("global", 39 / 39.00237, 0.43 / 39.00237)]
)
def test_part_with_large_gradients_shrinks_the_other_only_under_one_global_norm(scope, autoencoder, model):
    parts = two_parts()
    outcome = clip_and_check({n: p.parameters() for n, p in parts.items()}, Clipping(1.0, scope))
    assert gradient_norm(parts["autoencoder"]) == pytest.approx(autoencoder, rel=1e-4)
    assert gradient_norm(parts["model"]) == pytest.approx(model, rel=1e-4)
    norms = {name: float(norm) for name, norm in outcome.norms.items()}
    expected = {"grad_norm": 39.00237, "grad_norm_autoencoder": 39.0, "grad_norm_model": 0.43}
    assert norms == pytest.approx(expected, rel=1e-5)


def test_parts_whose_gradients_are_all_zero_are_told_from_those_with_tiny_ones():
    parts = two_parts()
    parts["none"] = small_network()
    for parameter in parts["model"].parameters():
        parameter.grad.zero_()
    for parameter in parts["autoencoder"].parameters():
        parameter.grad.fill_(1e-30)  # its square is 0 in float32
    outcome = clip_and_check({name: part.parameters() for name, part in parts.items()}, Clipping(1.0))
    zero = {part: bool(is_zero) for part, is_zero in outcome.zero.items()}
    assert zero == {"autoencoder": False, "model": True, "none": True}


@pytest.mark.parametrize("factor", [1.0, math.nan, math.inf])
def test_finite_step_changes_every_parameter_and_another_one_none(factor):
    module = small_network()
    optimizer = make_optimizer(parameter_groups({"model": module}, Optimizer()), Optimizer(), CPU)
    before = [p.clone() for p in module.parameters()]
    (module(torch.randn(8, 4)).square().sum() * factor).backward()
    finite = clip_and_check({"model": module.parameters()}, Clipping(1.0)).finite
    step_if_finite(optimizer, finite)
    assert bool(finite) == math.isfinite(factor)
    moved = [not torch.equal(p, b) for p, b in zip(module.parameters(), before, strict=True)]
    assert moved == len(moved) * [math.isfinite(factor)]


def test_many_bad_steps_in_a_row_stop_the_run_and_name_the_term():
    counters = BadSteps(limit=3, device=CPU, parts=())
    for finite in (False, False, True, False, False):
        counters.update(StepOutcome({}, torch.tensor(finite)))
    counters.check([], lambda: "step_1")
    assert counters.read()["skipped_steps"] == (4, 2)
    counters.update(StepOutcome({}, torch.tensor(False)))
    with pytest.raises(TrainingError, match=r"3 steps in a row .*terms not finite: nll.*step_1"):
        counters.check(["nll", "grad_norm"], lambda: "step_1")


def test_many_steps_in_a_row_without_any_gradient_stop_the_run_and_name_the_part():
    counters = BadSteps(limit=2, device=CPU, parts=("autoencoder", "model"))
    for is_zero in (True, False, True):
        zero = {"autoencoder": torch.tensor(False), "model": torch.tensor(is_zero)}
        counters.update(StepOutcome({}, torch.tensor(True), zero))
    counters.check([], lambda: "step_1")
    assert counters.row() == {"skipped_steps": 0, "zero_gradient_steps_model": 2}
    counters.update(StepOutcome({}, torch.tensor(True), zero))
    with pytest.raises(
        TrainingError, match=r"2 steps in a row left every gradient of the model exactly zero.*step_1"
    ):
        counters.check([], lambda: "step_1")


def test_counts_go_on_where_a_checkpoint_left_them():
    counters, restored = (BadSteps(limit=3, device=CPU, parts=("model",)) for _ in range(2))
    bad = StepOutcome({}, torch.tensor(False), {"model": torch.tensor(True)})
    for _ in range(2):
        counters.update(bad)
    restored.restore(json.loads(json.dumps(counters.read())))
    restored.update(bad)
    assert restored.read()["zero_gradient_steps_model"] == (3, 3)
    with pytest.raises(TrainingError, match="3 steps in a row"):
        restored.check([], lambda: "step_1")


def test_loss_that_is_not_finite_poisons_its_gradient():
    """An infinite loss can have a finite gradient; the step must be skipped all the same."""
    weight = torch.tensor(2.0, requires_grad=True)
    poison_if_not_finite(weight + torch.inf).backward()
    assert torch.isnan(weight.grad)
    healthy = torch.tensor(2.0, requires_grad=True)
    poison_if_not_finite(3 * healthy).backward()
    assert float(healthy.grad) == 3.0
