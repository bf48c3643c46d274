"""Means of the log: each term as if it were alone, whatever comes together and wherever a checkpoint cuts."""

from types import SimpleNamespace

import pytest
import torch

from simflow_plugin.training.averages import RunningMeans

ALONE = SimpleNamespace(reduce=lambda tensor, reduction: tensor)


def tensors(**values):
    return {name: torch.tensor(value) for name, value in values.items()}


def step(means, number):
    """Add a step of two micro-batches; `adversarial` begins at step 3, `nll` is infinite in one half of step 4."""
    generator = torch.Generator().manual_seed(number)
    for half in range(2):
        nll, l2 = torch.rand(2, generator=generator).tolist()
        late = {"adversarial": float(number)} if number >= 3 else {}
        broken = number == 4 and half == 0
        means.add_all(tensors(nll=torch.inf if broken else nll, l2=l2, **late), 0.5)
    means.add_all(tensors(grad_norm=float(number)), 1.0)
    means.end_step()


def test_means_are_those_of_each_term_alone():
    means = RunningMeans()
    for number in range(6):
        step(means, number)
    found = means.take_means(ALONE)
    by_step = [torch.rand(4, generator=torch.Generator().manual_seed(number)).tolist() for number in range(6)]
    nll = [value for number, row in enumerate(by_step) for value in row[::2]]
    del nll[8]  # the infinite one
    assert found.values["nll"] == pytest.approx(sum(nll) / 11, rel=1e-6)
    assert found.values["l2"] == pytest.approx(sum(v for row in by_step for v in row[1::2]) / 12, rel=1e-6)
    assert found.values["adversarial"] == 4.0
    assert found.values["grad_norm"] == 2.5
    assert found.not_finite == {"nll": 0.5}


def test_a_scalar_may_be_written_over_before_the_step_ends():
    """As the outputs of a graph are, or a term that is accumulated in place."""
    means, terms = RunningMeans(), tensors(nll=1.0, l2=2.0)
    means.add_all(terms, 1.0)
    for value in terms.values():
        value.fill_(100.0)
    means.end_step()
    assert means.take_means(ALONE).values == {"nll": 1.0, "l2": 2.0}


@pytest.mark.parametrize("cut", range(1, 6))
def test_resumed_means_are_bitwise_equal(cut):
    whole, first, second = RunningMeans(), RunningMeans(), RunningMeans()
    for number in range(6):
        step(whole, number)
    for number in range(cut):
        step(first, number)
    second.restore(first.sums(ALONE), first.num_steps, torch.device("cpu"))
    for number in range(cut, 6):
        step(second, number)
    assert second.num_steps == 6
    assert second.take_means(ALONE) == whole.take_means(ALONE)


def test_sums_of_earlier_versions_are_read():
    """They were two, for terms that are in every step."""
    means = RunningMeans()
    means.restore({"nll": torch.tensor([3.0, 1.0])}, 4, torch.device("cpu"))
    assert means.take_means(ALONE).values == {"nll": 1.0}


def test_one_bad_step_does_not_hide_the_others_and_is_named():
    means = RunningMeans()
    for nll in (1.0, torch.inf, 3.0):
        means.add_all(tensors(nll=nll, never=torch.nan), 1.0)
        means.end_step()
    values, not_finite = means.take_means(ALONE)
    assert values == {"nll": 2.0, "never": None}
    assert not_finite == {"nll": 1.0, "never": 3.0}
