"""Rotary positions: products of rotated vectors depend on differences of positions only."""

from __future__ import annotations

import torch

from simflow_plugin.flow import FlowConfig
from simflow_plugin.flow.rope import rotate, rotation_table


def table(num_prefix: int = 0, **options: object) -> torch.Tensor:
    values = {"width": 32, "layers_per_block": (1,), "head_dim": 32, "token_dim": 1, "grid_size": (3, 4)}
    config = FlowConfig(**(values | options))
    result = rotation_table(config, num_prefix, torch.zeros((), dtype=torch.float64))
    assert result is not None
    return result


def test_product_depends_on_the_difference_of_positions() -> None:
    query, key = torch.randn(2, 32, dtype=torch.float64)
    queries, keys = (
        rotate(vector.expand(1, 12, 1, 32).contiguous(), table())[0, :, 0] for vector in (query, key)
    )
    products = (queries @ keys.T).view(3, 4, 3, 4)  # rows and columns of query, of key
    torch.testing.assert_close(products[0, 0, 1, 1], products[1, 2, 2, 3])
    torch.testing.assert_close(products[2, 3, 0, 1], products[2, 2, 0, 0])
    assert not torch.isclose(products[0, 0, 1, 1], products[0, 0, 1, 2])


def test_rotation_keeps_lengths() -> None:
    heads = torch.randn(2, 12, 3, 32, dtype=torch.float64)
    torch.testing.assert_close(rotate(heads, table()).norm(dim=-1), heads.norm(dim=-1))


def test_low_precision_formula_equals_the_complex_one() -> None:
    heads = torch.randn(2, 12, 3, 32)
    exact = rotate(heads, table().to(torch.complex64))
    rounded = rotate(heads.bfloat16(), table().to(torch.complex64))
    torch.testing.assert_close(rounded.float(), exact, rtol=0.02, atol=0.05)


def test_class_token_does_not_turn() -> None:
    turns = table(num_prefix=1, num_classes=3)
    assert torch.equal(turns[0], torch.ones_like(turns[0]))
    assert torch.equal(turns[1:], table())


def test_condition_sequence_has_an_axis_of_its_own() -> None:
    turns = table(num_prefix=5, condition_dim=3, condition_frequencies=4)
    prefix, image = turns[:5], turns[5:]
    assert torch.equal(prefix[:, :12], torch.ones_like(prefix[:, :12]))
    assert torch.equal(image[:, 12:], torch.ones_like(image[:, 12:]))
    assert len(torch.unique(prefix[:, 12].angle())) == 5


def test_side_scales_positions() -> None:
    turns, own = table(grid_size=(4, 4), rope_side=8.0), table(grid_size=(8, 8))
    torch.testing.assert_close(turns.view(4, 4, 16), own.view(8, 8, 16)[::2, ::2])


def test_learned_positions_have_no_table() -> None:
    config = FlowConfig(family="tarflow", size="S", token_dim=1, grid_size=(2, 2))
    assert rotation_table(config, 0, torch.zeros(())) is None
