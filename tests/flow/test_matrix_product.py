"""The oneDNN product is nn.Linear in value, gradient and second gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from simflow_plugin.flow import matrix_product as linear
from simflow_plugin.flow.matrix_product import Linear, uses_onednn


@pytest.fixture
def slow_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor where torch's default product is slow."""
    monkeypatch.setattr(linear, "is_default_slow", lambda: True)


needs_onednn = pytest.mark.skipif(not uses_onednn(torch.zeros(1)), reason="this torch has no oneDNN")


@needs_onednn
@pytest.mark.usefixtures("slow_default")
@pytest.mark.parametrize("bias", [True, False])
def test_value_and_gradients_equal_those_of_the_plain_map(bias: bool) -> None:
    ours = Linear(64, 80, bias=bias)
    plain = nn.Linear(64, 80, bias=bias)
    plain.load_state_dict(ours.state_dict())
    results = []
    for module in (ours, plain):
        hidden = torch.linspace(-1, 1, 2 * 40 * 64).view(2, 40, 64).requires_grad_()
        output = module(hidden)
        output.square().sum().backward()
        results.append([output, hidden.grad, *(parameter.grad for parameter in module.parameters())])
    assert type(results[0][0].grad_fn).__name__ == "_OneDnnLinearBackward"
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-3)


@needs_onednn
@pytest.mark.usefixtures("slow_default")
def test_second_gradient_equals_that_of_the_plain_map() -> None:
    ours = Linear(64, 80)
    hidden = torch.randn(40, 64, requires_grad=True)
    weight, bias = ours.weight, ours.bias
    norms = []
    for output in (ours(hidden), nn.functional.linear(hidden, weight, bias)):
        (slope,) = torch.autograd.grad(output.pow(3).sum(), hidden, create_graph=True)
        norms.append(torch.autograd.grad(slope.square().sum(), weight)[0])
    torch.testing.assert_close(norms[0], norms[1], rtol=1e-3, atol=1e-3 * float(norms[1].abs().max()))


@pytest.mark.parametrize(
    ("capability", "maker", "is_slow"),
    [
        ("AVX512", "AuthenticAMD", True),
        ("AVX512", "GenuineIntel", False),
        ("AVX2", "AuthenticAMD", False),
        ("DEFAULT", "", False),
    ],
)
def test_default_product_is_slow_where_mkl_leaves_vectors_unused(
    capability: str, maker: str, is_slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(linear, "_maker_of_processor", lambda: maker)
    assert linear.is_default_slow.__wrapped__() is is_slow


@pytest.mark.usefixtures("slow_default")
def test_small_and_double_products_are_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "onednn_linear", None)
    assert Linear(64, 80)(torch.zeros(4, 64)).shape == (4, 80)
    assert Linear(64, 80).double()(torch.zeros(40, 64).double()).shape == (40, 80)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Linear(64, 80)(torch.zeros(40, 64)).dtype == torch.bfloat16
