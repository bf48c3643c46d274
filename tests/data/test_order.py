import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simflow_plugin.data.order import DataOrder, GlobalBatches, coin_flips, sample_rows
from simflow_plugin.errors import ConfigError, DataError


def rows_of_step(
    order: DataOrder, batch_size: int, world_size: int, accumulation: int, step: int
) -> torch.Tensor:
    batches = GlobalBatches(batch_size, world_size, accumulation)
    rows = torch.full((batch_size,), -1)
    for rank in range(world_size):
        for micro in range(accumulation):
            offset = batches.offset(micro, rank)
            rows[offset : offset + batches.micro_batch_size] = order.indices(
                batches.positions(step, micro, rank)
            )
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
    size = micro * 16
    alone = rows_of_step(DataOrder(num, seed=3), size, 1, 1, step)
    assert torch.equal(rows_of_step(DataOrder(num, seed=3), size, world, accumulation, step), alone)


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


def test_coin_flips_are_fair_and_unrelated_between_purposes():
    positions = torch.arange(20_000)
    first, second = coin_flips(0, "flip", positions), coin_flips(1, "flip", positions)
    assert abs(first.double().mean() - 0.5) < 0.02
    assert abs((first == second).double().mean() - 0.5) < 0.02


def test_neighbouring_coin_flips_are_uncorrelated():
    flips = coin_flips(0, "flip", torch.arange(20_001))
    assert abs((flips[1:] == flips[:-1]).double().mean() - 0.5) < 0.02


def test_a_coin_flip_depends_on_its_position_only():
    assert torch.equal(
        coin_flips(7, "flip", torch.arange(100))[40:60], coin_flips(7, "flip", torch.arange(40, 60))
    )


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
