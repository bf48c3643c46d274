"""Attention backends agree with the definition; xformers is tested through a reference of its signature."""

from __future__ import annotations

import logging
import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor

from simflow_plugin.errors import ConfigError, RegistryError
from simflow_plugin.flow.attention import AttentionContext, xformers
from simflow_plugin.flow.attention import backend_choice as auto
from simflow_plugin.flow.attention.xformers import XformersAttention
from simflow_plugin.registry import ATTENTION
from tests.flow.builders import build_flow, inputs_for

CONTEXT = AttentionContext(head_dim=4)


class TopLeft:
    """Stands for xformers' LowerTriangularMask: query i sees keys 0 .. i."""

    def mask(self, num_queries: int, length: int) -> Tensor:
        return torch.ones(num_queries, length).tril()


class BottomRight:
    """Stands for xformers' LowerTriangularFromBottomRightMask: the last query sees all keys."""

    def mask(self, num_queries: int, length: int) -> Tensor:
        return torch.ones(num_queries, length).tril(length - num_queries)


def reference(
    query: Tensor, key: Tensor, value: Tensor, attn_bias: Any = None, scale: float | None = None
) -> Tensor:
    """memory_efficient_attention by its definition, on (B, M, H, K) or grouped (B, M, G, H, K)."""
    assert query.shape[2:] == key.shape[2:] == value.shape[2:], "heads must match; groups are expanded"
    scores = torch.einsum("bm...k,bn...k->b...mn", query, key) * (scale or query.shape[-1] ** -0.5)
    if attn_bias is not None:
        scores = scores.masked_fill(attn_bias.mask(*scores.shape[-2:]) == 0, float("-inf"))
    return torch.einsum("b...mn,bn...k->bm...k", scores.softmax(-1), value)


@pytest.fixture
def fake_xformers(monkeypatch: pytest.MonkeyPatch) -> None:
    ops = xformers.Operators(reference, TopLeft, BottomRight)
    monkeypatch.setattr(xformers, "load_xformers", lambda: ops)


def heads(num_queries: int, length: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    shapes = [(2, 4, num_queries, 4), (2, groups, length, 4), (2, groups, length, 4)]
    return tuple(torch.randn(shape, dtype=torch.float64) for shape in shapes)  # type: ignore[return-value]


@pytest.mark.usefixtures("fake_xformers")
@pytest.mark.parametrize("name", ["sdpa", "xformers", "auto"])
@pytest.mark.parametrize(("num_queries", "length"), [(5, 5), (1, 5), (3, 5), (1, 1)])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_backend_equals_the_definition(name: str, num_queries: int, length: int, groups: int) -> None:
    queries, keys, values = heads(num_queries, length, groups)
    shared_keys, shared_values = (part.repeat_interleave(4 // groups, dim=1) for part in (keys, values))
    scores = queries @ shared_keys.transpose(-1, -2) / 2
    visible = torch.ones(num_queries, length).tril(length - num_queries).bool()
    expected = scores.masked_fill(~visible, float("-inf")).softmax(-1) @ shared_values
    result = ATTENTION.build(name, CONTEXT)(queries, keys, values)
    assert result.shape == queries.shape
    torch.testing.assert_close(result, expected)


@pytest.mark.usefixtures("fake_xformers")
@pytest.mark.parametrize("num_kv_heads", [None, 1])
def test_flow_on_xformers_equals_flow_on_sdpa(num_kv_heads: int | None) -> None:
    options = {"num_classes": 3, "num_kv_heads": num_kv_heads}
    ours, theirs = build_flow(**options), build_flow(attention="xformers", **options)
    noise, condition = inputs_for(ours)
    torch.testing.assert_close(theirs(noise, **condition).noise, ours(noise, **condition).noise)
    for method in ("cached", "jacobi"):
        sampled = [flow.inverse(noise, **condition, guidance=1.0, method=method) for flow in (ours, theirs)]
        torch.testing.assert_close(*sampled)


def test_auto_without_cuda_says_that_it_uses_sdpa(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    auto._say.cache_clear()
    with caplog.at_level(logging.INFO):
        backend = ATTENTION.build("auto", CONTEXT)
        ATTENTION.build("auto", CONTEXT)
    assert isinstance(backend, auto.AutoAttention)
    assert backend.xformers is None
    assert caplog.messages == ["attention: auto picked sdpa: there is no CUDA device"]


def test_auto_sends_cpu_tensors_to_sdpa(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Tensor, **options: Any) -> Tensor:
        raise AssertionError("xformers was called with CPU tensors")

    monkeypatch.setattr(auto, "why_not_xformers", lambda context: None)
    monkeypatch.setattr(auto, "refused_cases", lambda context: {})
    monkeypatch.setattr(xformers, "load_xformers", lambda: xformers.Operators(refuse, TopLeft, BottomRight))
    backend = ATTENTION.build("auto", CONTEXT)
    assert isinstance(backend, auto.AutoAttention)
    assert isinstance(backend.xformers, XformersAttention)
    assert backend(*heads(2, 2, 4)).shape == (2, 4, 2, 4)


@pytest.mark.usefixtures("fake_xformers")
def test_deterministic_training_does_not_go_through_xformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradients are sums in no fixed order; without gradients it may be used."""
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    backend = ATTENTION.build("xformers", CONTEXT)
    tensors = heads(2, 2, 4)
    assert backend(*tensors).shape == (2, 4, 2, 4)
    tensors[0].requires_grad_()
    with pytest.raises(
        ConfigError, match=r"training\.deterministic cannot hold.*`attention: sdpa` or `auto`"
    ):
        backend(*tensors)


@pytest.fixture(params=["missing", "for another torch"])
def xformers_that_does_not_load(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put no xformers in place, or one whose library does not fit torch: all names are there, it logged a warning."""
    if request.param == "missing":
        monkeypatch.setitem(sys.modules, "xformers", None)
        return "does not load "
    library, ops, fmha = (types.ModuleType(f"xformers.{name}") for name in ("_cpp_lib", "ops", "ops.fmha"))
    library._cpp_library_load_exception = RuntimeError("built for:\n  PyTorch 2.10")
    ops.fmha, fmha.attn_bias = fmha, types.SimpleNamespace()
    package = types.ModuleType("xformers")
    package._cpp_lib, package.ops = library, ops
    for module in (package, library, ops, fmha):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return r"does not load \(built for: PyTorch 2.10\)"


def test_xformers_that_does_not_load_is_refused_and_left_by_auto(
    xformers_that_does_not_load: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=f"{xformers_that_does_not_load}.*use `attention: sdpa`"):
        ATTENTION.build("xformers", CONTEXT)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert ATTENTION.build("auto", CONTEXT).xformers is None


@pytest.mark.usefixtures("fake_xformers")
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_grouped_heads_with_gradients_use_the_layout_that_has_a_backward_operator(
    monkeypatch: pytest.MonkeyPatch, groups: int
) -> None:
    seen = []

    def recorded(query: Tensor, *others: Tensor, **options: Any) -> Tensor:
        seen.append(query.dim())
        return reference(query, *others, **options)

    monkeypatch.setattr(xformers, "load_xformers", lambda: xformers.Operators(recorded, TopLeft, BottomRight))
    queries, keys, values = (part.requires_grad_() for part in heads(5, 5, groups))
    results = [ATTENTION.build(name, CONTEXT)(queries, keys, values) for name in ("xformers", "sdpa")]
    assert seen == [4]
    for ours, theirs in zip(
        *(torch.autograd.grad(r.square().sum(), (queries, keys, values)) for r in results), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_missing_operator_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Tensor, **options: Any) -> Tensor:
        raise NotImplementedError(
            "No operator found:\n  query : shape=(1,)\n  `fa2F` is not supported because: float64"
        )

    monkeypatch.setattr(xformers, "load_xformers", lambda: xformers.Operators(refuse, TopLeft, BottomRight))
    with pytest.raises(
        ConfigError, match=r"no operator for torch.float64 on cpu .*`fa2F`.*Use `attention: auto`"
    ):
        ATTENTION.build("xformers", CONTEXT)(*heads(2, 2, 4))


def test_unknown_backend_lists_the_known_ones() -> None:
    with pytest.raises(RegistryError, match=r"Did you mean `sdpa`\? Known: auto, sdpa, xformers"):
        ATTENTION.build("sdp", CONTEXT)


def test_half_types_on_a_cpu_are_attended_in_float32():
    torch.manual_seed(0)
    backend = ATTENTION.build("sdpa", CONTEXT)
    queries, keys, values = (torch.randn(2, 3, 5, 4).bfloat16() for _ in range(3))
    attended = backend(queries, keys, values)
    assert attended.dtype == torch.bfloat16
    expected = backend(queries.float(), keys.float(), values.float()).bfloat16()
    assert torch.equal(attended, expected)
