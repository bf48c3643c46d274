"""Embeddings of time, class and position."""

import math

import pytest
import torch

from simflow_plugin.contracts import NO_LABEL
from simflow_plugin.diffusion.embeddings import LabelEmbedding, TimeEmbedding, sincos_positions
from simflow_plugin.errors import ShapeError


def test_positions_encode_column_then_row() -> None:
    table = sincos_positions(8, (3, 5))[0].unflatten(0, (3, 5))  # (row, column, channel)
    angle = torch.tensor([2.0, 2 * 10_000**-0.5])
    torch.testing.assert_close(table[1, 2, :4], torch.cat([angle.sin(), angle.cos()]))
    torch.testing.assert_close(table[2, 1, 4:], torch.cat([angle.sin(), angle.cos()]))


def test_positions_of_all_tokens_differ() -> None:
    table = sincos_positions(16, (4, 6))[0]
    assert len(torch.unique(table, dim=0)) == 24


def test_no_label_has_the_last_row() -> None:
    embed = LabelEmbedding(3, 4)
    torch.testing.assert_close(embed(torch.tensor([NO_LABEL, 1])), embed.table.weight[[3, 1]])


@pytest.mark.parametrize("label", [-2, 3])
def test_label_out_of_range_is_named(label: int) -> None:
    with pytest.raises(ShapeError, match=r"knows \[0, 3\)"):
        LabelEmbedding(3, 4)(torch.tensor([0, label]))


def test_time_embedding_sees_cosines_then_sines() -> None:
    embed = TimeEmbedding(8, num_waves=8)
    torch.nn.init.eye_(embed.mlp_in.weight)
    torch.nn.init.zeros_(embed.mlp_in.bias)
    torch.nn.init.eye_(embed.mlp_out.weight)
    torch.nn.init.zeros_(embed.mlp_out.bias)
    angles = torch.tensor([0.5 * math.exp(-math.log(10_000) * k / 4) for k in range(4)])
    expected = torch.nn.functional.silu(torch.cat([angles.cos(), angles.sin()]))
    torch.testing.assert_close(embed(torch.tensor([0.5]))[0], expected)
