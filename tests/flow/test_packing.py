"""Packed linear maps compute the same, for one sampling run, and leave the flow as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from simflow_plugin.flow.packing import PackedLinear, can_pack, packed_copy
from tests.flow.builders import build_flow, inputs_for

pytestmark = pytest.mark.skipif(not can_pack(torch.zeros(1)), reason="this torch has no oneDNN")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(8, 1, 12), (2, 5, 12), (3, 12)])
def test_packed_map_equals_the_map(bias: bool, shape: tuple[int, ...]) -> None:
    linear = nn.Linear(12, 20, bias=bias)
    hidden = torch.randn(shape)
    expected = copy.deepcopy(linear).double()(hidden.double())
    torch.testing.assert_close(PackedLinear(linear, rows=8)(hidden).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mlp", ["gelu", "swiglu", "geglu"])
def test_packed_block_equals_the_block(mlp: str) -> None:
    flow = build_flow(torch.float32, mlp=mlp, num_classes=3)
    tokens, condition = inputs_for(flow)
    with torch.no_grad():
        packed = packed_copy(flow.deep_block, rows=3)(tokens, condition["labels"], None)
        exact = copy.deepcopy(flow.deep_block).double()(tokens.double(), condition["labels"], None)
    torch.testing.assert_close(packed.noise.double(), exact.noise, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(packed.logdet.double(), exact.logdet.double(), rtol=1e-4, atol=1e-4)


def test_packing_leaves_the_block_alone() -> None:
    block = build_flow(torch.float32).deep_block
    names = list(block.state_dict())
    twin = packed_copy(block, rows=3)
    assert list(block.state_dict()) == names
    assert isinstance(block.proj_in, nn.Linear)
    assert isinstance(twin.proj_in, PackedLinear)


def test_only_float32_on_the_cpu_is_packed() -> None:
    assert not can_pack(torch.zeros(1, dtype=torch.float64))
    assert not can_pack(torch.zeros(1, device="meta"))
