"""Budgets of launches in a training step beside forward and backward: they must not grow with the number of tensors."""

import pytest
import torch

from simflow_plugin.training.averages import RunningMeans
from tests.gpu.cuda.counting import counted
from tests.gpu.cuda.test_runs import trainer_on_cuda, values_of


@pytest.mark.parametrize("count", [3, 40])
def test_terms_of_a_step_are_added_in_five_launches(count):
    means = RunningMeans()
    terms = {f"term_{index}": torch.zeros((), device="cuda") for index in range(count)}
    means.add_all(terms, 1.0)
    means.end_step()  # the first makes the sums
    with counted() as counts:
        means.add_all(terms, 1.0)
        means.end_step()
    assert counts.operations <= 5
    assert counts.waits == 0


def test_optimizer_and_averages_do_not_launch_for_each_tensor(tmp_path):
    trainer = trainer_on_cuda(values_of("simflow", "bfloat16"), tmp_path / "run")
    batches = iter(trainer._loader())
    trainer._train_step(batches)
    loss = sum(parameter.sum() for parameter in trainer.joint.parameters() if parameter.requires_grad)
    num_tensors = sum(parameter.requires_grad for parameter in trainer.joint.parameters())
    loss.backward()
    with counted() as step:
        outcome = trainer.engine.step()
    with counted() as averages:
        trainer.averages.update(trainer.engine.averaged(), 1)
    with counted() as counters:
        trainer.bad_steps.update(outcome)
    print(
        f"{num_tensors} tensors: step {step.operations}, averages {averages.operations}, {counters.operations}"
    )
    assert step.operations < num_tensors
    assert averages.operations < num_tensors / 4
    assert counters.operations < 40
