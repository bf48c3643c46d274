"""adaLN: exact as a flow, off at the start, the same in every sampler, every step and on a condition of one token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from simflow_plugin.flow import FlowConfig, Jacobi, TransformerFlow
from simflow_plugin.flow.kernels import library
from simflow_plugin.flow.packing import PackedLinear, can_pack, packed_copy
from tests.flow.builders import build_flow, inputs_for

VARIANTS = [
    {"adaln_gates": gates, "conditional_blocks": blocks}
    for gates in (True, False)
    for blocks in ("all", "deep")
]
STEPS: dict[str, Any] = {
    "eager": {"name": "cached", "step": "eager"},
    "static": {"name": "cached", "step": "static"},
    "jacobi": Jacobi(segment=4, tolerance=0.0, max_iterations=4),
}


def build(dtype: torch.dtype = torch.float64, **options: Any) -> TransformerFlow:
    return build_flow(dtype, class_conditioning="adaln", **({"num_classes": 3} | options))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_logdet_matches_jacobian(variant: dict[str, Any]) -> None:
    flow = build(**variant)
    tokens, condition = inputs_for(flow, rows=1)
    jacobian = torch.autograd.functional.jacobian(lambda row: flow(row, **condition).noise, tokens)
    size = tokens.numel()
    expected = torch.linalg.slogdet(jacobian.reshape(size, size)).logabsdet
    torch.testing.assert_close(flow(tokens, **condition).logdet[0], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("guidance", [0.0, 1.5])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("step", STEPS)
def test_every_sampler_gives_the_numbers_of_naive(
    step: str, variant: dict[str, Any], guidance: float
) -> None:
    flow = build(**variant, post_norm=True)
    noise, condition = inputs_for(flow)
    expected = flow.inverse(noise, **condition, guidance=guidance, method="naive")
    sampled = flow.inverse(noise, **condition, guidance=guidance, method=STEPS[step])
    torch.testing.assert_close(sampled, expected, rtol=0, atol=1e-10)


@pytest.mark.skipif(library.find_library() is None, reason="no C++ compiler, or the kernel cannot be built")
@pytest.mark.parametrize("post_norm", [True, False])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_kernel_gives_the_numbers_of_float64(variant: dict[str, Any], post_norm: bool) -> None:
    options = {"width": 40, "head_dim": 20, "mlp_ratio": 2.3, "post_norm": post_norm, **variant}
    exact, flow = build(**options), build(torch.float32, **options)
    flow.load_state_dict(exact.state_dict())
    noise, condition = inputs_for(exact, rows=5)
    expected = exact.inverse(noise, **condition, guidance=1.0)
    sampled = flow.inverse(
        noise.float(), **condition, guidance=1.0, method={"name": "cached", "step": "native"}
    )
    size = expected.abs().max().clamp(min=1)
    torch.testing.assert_close(sampled.double() / size, expected / size, rtol=0, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_inverse_recovers_tokens(variant: dict[str, Any]) -> None:
    flow = build(**variant)
    tokens, condition = inputs_for(flow)
    recovered = flow.inverse(flow(tokens, **condition).noise, **condition)
    torch.testing.assert_close(recovered, tokens, rtol=0, atol=1e-10)


@pytest.mark.parametrize("gates", [True, False])
def test_new_flow_ignores_its_labels(gates: bool) -> None:
    torch.manual_seed(0)
    flow = build_new(adaln_gates=gates)
    nn.init.normal_(flow.deep_block.proj_out.weight)  # or the block is the identity whatever its layers do
    tokens, condition = inputs_for(flow)
    with_labels = flow(tokens, **condition).noise
    torch.testing.assert_close(with_labels, flow(tokens).noise, rtol=0, atol=0)


def build_new(**options: Any) -> TransformerFlow:
    values = {"width": 16, "layers_per_block": (1, 2), "head_dim": 8, "token_dim": 3, "grid_size": (2, 3)}
    return TransformerFlow(
        FlowConfig(**values, class_conditioning="adaln", num_classes=3, **options)
    ).double()


def test_gated_layers_start_as_the_identity() -> None:
    flow = build_new(conditional_blocks="all")
    block = flow.deep_block
    hidden = torch.randn(2, 4, 16, dtype=torch.float64)
    embedding = block.embed_condition(torch.tensor([0, 2]))
    assert torch.equal(block.run_layers(hidden, None, embedding, [None, None], 0), hidden)


def test_norms_of_modulated_layers_have_no_parameters() -> None:
    flow = build_new(conditional_blocks="deep")
    assert not [name for name, _ in flow.deep_block.layers.named_parameters() if "_norm" in name]
    assert [name for name, _ in flow.blocks[0].layers.named_parameters() if "_norm" in name]


@pytest.mark.parametrize(("gates", "vectors"), [(True, 6), (False, 4)])
def test_parameters_are_those_of_the_vectors(gates: bool, vectors: int) -> None:
    flow = build_new(adaln_gates=gates, conditional_blocks="all")
    adaln = [p.numel() for name, p in flow.named_parameters() if ".adaln." in name]
    assert sum(adaln) == 3 * vectors * 16 * (16 + 1)  # 3 layers of width 16


def test_one_token_of_features_equals_a_label() -> None:
    by_label = build()
    features = FlowConfig(**{**by_label.config.model_dump(), "num_classes": None, "condition_dim": 4,
                             "condition_length": 1, "condition_frequencies": 0})  # fmt: skip
    flow = TransformerFlow(features).double().eval()
    state = by_label.state_dict()
    for index, block in enumerate(by_label.blocks):
        table = state.pop(f"blocks.{index}.condition.table", None)
        if table is not None:
            assert block.is_conditional
            state[f"blocks.{index}.condition.proj.weight"] = table.T.contiguous()
            state[f"blocks.{index}.condition.proj.bias"] = torch.zeros(16, dtype=torch.float64)
    flow.load_state_dict(state)
    tokens, condition = inputs_for(by_label)
    one_hot = nn.functional.one_hot(condition["labels"] % 4, 4)[
        :, None
    ].double()  # -1, no label, is the last row
    torch.testing.assert_close(
        flow(tokens, condition=one_hot).noise, by_label(tokens, **condition).noise, rtol=0, atol=1e-12
    )


@pytest.mark.skipif(not can_pack(torch.zeros(1)), reason="this torch has no oneDNN")
def test_packing_leaves_out_what_runs_once_a_block() -> None:
    twin = packed_copy(build(torch.float32).deep_block, rows=3)
    assert not isinstance(twin.layers[0].adaln.proj, PackedLinear)
    assert isinstance(twin.layers[0].attention.qkv, PackedLinear)
