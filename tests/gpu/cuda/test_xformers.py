"""What xformers' own dispatch accepts on CUDA, over types, grouping and gradients; on a real GPU, that it is right.

On the null device the wheel's library is taken to have loaded: the dispatch is Python, and no kernel runs.
"""

import pytest
import torch

from simflow_plugin.flow.attention import AttentionContext
from simflow_plugin.flow.attention.backend_choice import ALL_CASES, COMPUTE_TYPES, AutoAttention
from simflow_plugin.flow.attention.sdpa import SdpaAttention
from simflow_plugin.registry import ATTENTION
from tests.flow.builders import build_flow
from tests.gpu.cuda.counting import IS_NULL

xformers = pytest.importorskip("xformers")
GROUPINGS = [6, 2, 1]


@pytest.fixture(autouse=True)
def _library_loaded(monkeypatch):
    if IS_NULL:
        monkeypatch.setattr("xformers._cpp_lib._cpp_library_load_exception", None)
        monkeypatch.setattr("xformers.ops.fmha.common._built_with_cuda", True)


def heads(groups, num_queries, length, dtype, requires_grad):
    shapes = [(2, 6, num_queries, 64), (2, groups, length, 64), (2, groups, length, 64)]
    return [torch.randn(shape, device="cuda").to(dtype).requires_grad_(requires_grad) for shape in shapes]


@pytest.mark.parametrize("groups", GROUPINGS)
@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_what_auto_gives_to_xformers_it_can_run(case, groups):
    """At the lengths of a real flow: every operator is found, forward and backward."""
    backend = ATTENTION.build("auto", AttentionContext(64, 6, groups))
    for num_queries, length in (
        [(257, 257)] if case.needs_gradient else [(257, 257), (1, 57), (32, 57), (1, 257)]
    ):
        tensors = heads(groups, num_queries, length, case.dtype, case.needs_gradient)
        output = backend(*tensors)
        expected = SdpaAttention(AttentionContext(64))(*tensors)
        if case.needs_gradient:
            output.sum().backward()
        if not IS_NULL:
            tolerance = 1e-4 if case.dtype == torch.float32 else 2e-2
            torch.testing.assert_close(output, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("groups", GROUPINGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("requires_grad", [True, False])
def test_half_precision_goes_to_xformers(dtype, groups, requires_grad):
    backend = ATTENTION.build("auto", AttentionContext(64, 6, groups))
    assert isinstance(backend, AutoAttention)
    assert backend.backend_of(*heads(groups, 8, 8, dtype, requires_grad)) is backend.xformers


@pytest.mark.parametrize("dtype", [*COMPUTE_TYPES, None], ids=str)
@pytest.mark.parametrize("num_kv_heads", [None, 1])
def test_flow_trains_and_samples_in_every_type(dtype, num_kv_heads):
    """None is autocast: products in bfloat16, weights in float32."""
    flow = build_flow(attention="auto", num_kv_heads=num_kv_heads, num_classes=3, head_dim=8).cuda()
    flow = flow.to(dtype or torch.float32)
    tokens = torch.randn(2, flow.config.num_tokens, flow.config.token_dim, device="cuda")
    labels = torch.zeros(2, dtype=torch.int64, device="cuda")
    with torch.autocast("cuda", torch.bfloat16, enabled=dtype is None):
        output = flow(tokens, labels)
        (output.noise.square().sum() - output.logdet.sum()).backward()
        # What Jacobi iteration does next depends on numbers, which the null device does not have.
        for method in ({"name": "cached", "step": "eager"}, *(() if IS_NULL else ("jacobi",))):
            assert flow.inverse(tokens, labels, guidance=1.0, method=method).shape == tokens.shape
    assert all(parameter.grad is not None for parameter in flow.parameters())
