import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simflow_plugin.data.order import DataOrder, GlobalBatches, coin_flips, sample_rows
from simflow_plugin.errors import ConfigError, DataError


def rows_of_step(num: int, batches: GlobalBatches, step: int) -> torch.Tensor:
    order, rows = DataOrder(num, seed=3), torch.full((batches.batch_size,), -1)
    for rank in range(batches.world_size):
        for micro in range(batches.accumulation):
            part = order.indices(batches.positions(step, micro, rank))
            rows[batches.offset(micro, rank) :][: len(part)] = part
    return rows


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    num=st.integers(1, 50),
    micro=st.integers(1, 4),
    world=st.sampled_from([1, 2, 4]),
    accumulation=st.sampled_from([1, 2, 4]),
    step=st.integers(0, 100),
)
def test_rows_do_not_depend_on_processes_and_accumulation(num, micro, world, accumulation, step):
    alone, shared = GlobalBatches(micro * 16), GlobalBatches(micro * 16, world, accumulation)
    assert torch.equal(rows_of_step(num, shared, step), rows_of_step(num, alone, step))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(num=st.integers(1, 60), epoch=st.integers(0, 5), seed=st.integers(0, 9))
def test_every_epoch_shows_every_image_once(num, epoch, seed):
    positions = torch.arange(epoch * num, (epoch + 1) * num)
    assert DataOrder(num, seed).indices(positions).sort().values.tolist() == list(range(num))


def test_epochs_differ():
    order = DataOrder(100, seed=0)
    assert not torch.equal(order.indices(torch.arange(100)), order.indices(torch.arange(100, 200)))


def test_order_does_not_depend_on_what_was_asked_before():
    used = DataOrder(30, seed=1)
    for epoch in (5, 0, 3, 1):
        used.indices(torch.arange(epoch * 30, epoch * 30 + 45))
    positions = torch.arange(20, 130)
    assert torch.equal(used.indices(positions), DataOrder(30, seed=1).indices(positions))


def test_batch_size_that_does_not_divide_is_refused_with_the_numbers():
    with pytest.raises(ConfigError, match="30 is not divisible by 4 processes x 2"):
        GlobalBatches(30, world_size=4, accumulation=2)


def test_empty_data_set_has_no_order():
    with pytest.raises(DataError, match="empty"):
        DataOrder(0, seed=0)


def test_coin_flips_are_fair_and_unrelated_between_seeds_and_neighbours():
    first, second = (coin_flips(seed, "flip", torch.arange(20_001)) for seed in (0, 1))
    for bits in (first, first == second, first[1:] == first[:-1]):
        assert abs(bits.double().mean() - 0.5) < 0.02


def test_a_coin_flip_depends_on_its_position_only():
    all_flips, some = coin_flips(7, "flip", torch.arange(100)), coin_flips(7, "flip", torch.arange(40, 60))
    assert torch.equal(all_flips[40:60], some)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(num=st.integers(1, 300), count=st.integers(1, 400), more=st.integers(0, 50))
def test_sampled_rows_are_distinct_ascending_and_nested(num, count, more):
    rows, larger = sample_rows(num, count), sample_rows(num, count + more)
    assert len(rows) == min(num, count)
    assert rows == sorted(set(rows))
    assert set(rows) <= set(larger) <= set(range(num))


def test_sampled_rows_of_sorted_classes_are_of_all_classes():
    classes = {row // 100 for row in sample_rows(1000, 100)}
    assert classes == set(range(10))
