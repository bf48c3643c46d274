"""Optimizer groups, schedule, clipping, and steps that skip themselves."""

import math

import pytest
import torch
from torch import nn

from simflow_plugin.config import Optimizer
from simflow_plugin.engine.ema import ExponentialMovingAverage
from simflow_plugin.engine.optimizers import (
    clip_and_check,
    learning_rate_ratio,
    make_optimizer,
    parameter_groups,
    step_if_finite,
)
from simflow_plugin.engine.stability import BadStepCounter
from simflow_plugin.errors import TrainingError

CPU = torch.device("cpu")


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 1))


def test_vectors_and_embeddings_are_not_decayed():
    module = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    groups = parameter_groups({"model": module}, Optimizer(weight_decay=0.1))
    decayed = {tuple(p.shape) for g in groups if g["weight_decay"] > 0 for p in g["params"]}
    assert decayed == {(4, 4)}
    assert sum(len(g["params"]) for g in groups) == len(list(module.parameters()))


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


def test_gradients_are_clipped_by_their_global_norm():
    module = small_network()
    module(torch.ones(2, 4)).sum().backward()
    norms, finite = clip_and_check({"model": module.parameters()}, 0.01)
    clipped = math.sqrt(sum(float(p.grad.square().sum()) for p in module.parameters()))
    assert bool(finite)
    assert norms["grad_norm"] > 0.01
    assert clipped == pytest.approx(0.01, rel=1e-4)


def test_norm_of_each_part_adds_up_to_the_global_one():
    parts = {"autoencoder": small_network(), "model": small_network()}
    (parts["autoencoder"](torch.ones(2, 4)) + 3 * parts["model"](torch.ones(2, 4))).sum().backward()
    norms, _ = clip_and_check({name: part.parameters() for name, part in parts.items()}, None)
    assert norms["grad_norm_model"] == pytest.approx(3 * float(norms["grad_norm_autoencoder"]), rel=1e-5)
    parts_norm = math.hypot(norms["grad_norm_model"], norms["grad_norm_autoencoder"])
    assert parts_norm == pytest.approx(float(norms["grad_norm"]), rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_step_that_is_not_finite_changes_nothing(bad):
    module = small_network()
    optimizer = make_optimizer(parameter_groups({"model": module}, Optimizer()), Optimizer(), CPU)
    before = [p.clone() for p in module.parameters()]
    (module(torch.ones(2, 4)).sum() * bad).backward()
    _, finite = clip_and_check({"model": module.parameters()}, 1.0)
    step_if_finite(optimizer, finite)
    assert not bool(finite)
    assert all(torch.equal(p, b) for p, b in zip(module.parameters(), before, strict=True))


def test_finite_step_changes_every_parameter():
    module = small_network()
    optimizer = make_optimizer(parameter_groups({"model": module}, Optimizer()), Optimizer(), CPU)
    before = [p.clone() for p in module.parameters()]
    module(torch.randn(8, 4)).square().sum().backward()
    _, finite = clip_and_check({"model": module.parameters()}, 1.0)
    step_if_finite(optimizer, finite)
    assert not any(torch.equal(p, b) for p, b in zip(module.parameters(), before, strict=True))


def test_many_bad_steps_in_a_row_stop_the_run_and_name_the_term():
    counter = BadStepCounter(limit=3, device=CPU)
    for finite in (False, False, True, False, False):
        counter.update(torch.tensor(finite))
    counter.check({"nll": 1.0}, lambda: "step_1")
    assert counter.read() == (4, 2)
    counter.update(torch.tensor(False))
    with pytest.raises(TrainingError, match=r"3 steps in a row .*terms not finite: nll.*step_1"):
        counter.check({"l2": 0.1, "nll": float("nan")}, lambda: "step_1")


def test_average_follows_its_recurrence_and_is_applied_only_within_the_block():
    module = nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(1.0)
    ema = ExponentialMovingAverage(module, decay=0.5)
    module.weight.data.fill_(3.0)
    ema.update(module, step=1000)
    with ema.applied(module):
        assert float(module.weight.detach()) == pytest.approx(2.0)
        assert not module.training
    assert float(module.weight.detach()) == 3.0
    assert module.training


def test_average_leaves_frozen_parts_in_eval_mode():
    module = nn.Sequential(nn.Linear(1, 1), nn.Dropout())
    module[1].eval()
    ema = ExponentialMovingAverage(module, decay=0.5)
    with ema.applied(module):
        pass
    assert module[0].training
    assert not module[1].training
