"""Sampling on CUDA: a captured step is one launch, graphs outlive a call, and nothing is cast twice."""

import gc

import pytest
import torch

from simflow_plugin.flow import FlowArchitecture, FlowConfig, TransformerFlow
from simflow_plugin.flow.sampling import decode_graph
from tests.flow.builders import build_flow
from tests.gpu.cuda.counting import IS_NULL, counted

GRAPH = {"name": "cached", "step": "cuda_graph"}
EAGER = {"name": "cached", "step": "eager"}
SIZE = {"width": 64, "layers_per_block": (1, 2), "head_dim": 32, "patch_size": 2}


@pytest.fixture(autouse=True)
def _no_graphs_of_other_tests():
    decode_graph.release_graphs()


def flow_on(device="cuda", **options):
    architecture = FlowArchitecture.model_validate(SIZE | options)
    with torch.device(device):
        return TransformerFlow(
            FlowConfig.for_latents(architecture, (4, 16, 16), num_classes=10)
        ).requires_grad_(False)


def inputs_of(flow, rows=4):
    weight = flow.deep_block.proj_in.weight
    noise = torch.zeros(rows, flow.config.num_tokens, flow.config.token_dim, device=weight.device)
    return noise, torch.zeros(rows, dtype=torch.int64, device=weight.device)


def steps_of(flow):
    return flow.config.num_tokens * len(flow.blocks)


@pytest.mark.parametrize("guidance", [0.0, 1.5])
@pytest.mark.parametrize("autocast", [False, True])
def test_step_of_a_kept_graph_is_one_launch(guidance, autocast):
    """What else a call launches is for a block, not for a token."""
    flow = flow_on()
    noise, labels = inputs_of(flow)
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        flow.inverse(noise, labels, guidance=guidance)
        with counted() as counts:
            flow.inverse(noise, labels, guidance=guidance)
    assert counts.graph_launches == steps_of(flow)
    assert counts.operations < 200 * len(flow.blocks)
    assert counts.outside_capture == 0


def test_budget_of_the_published_size():
    """STARFlow's XXL, 256 tokens, batch 8, bfloat16, guided: operations a token beside the graph, all blocks.

    Eager steps launch 674 a token.
    """
    if not IS_NULL and torch.cuda.get_device_properties(0).total_memory < 40e9:
        pytest.skip("a GPU too small for 1.4 B parameters")
    architecture = FlowArchitecture.model_validate({"size": "XXL"})
    with torch.device("cuda"):
        flow = TransformerFlow(
            FlowConfig.for_latents(architecture, (16, 16, 16), num_classes=1000)
        ).bfloat16()
    noise, labels = inputs_of(flow.requires_grad_(False), rows=8)
    flow.inverse(noise, labels, guidance=1.5)
    with counted() as counts:
        flow.inverse(noise, labels, guidance=1.5)
    a_token = (counts.operations + counts.graph_launches) / flow.config.num_tokens
    print(f"{a_token:.1f} operations a token, {counts}")
    assert counts.graph_launches == steps_of(flow)
    assert a_token < 20


@pytest.mark.parametrize("options", [{}, {"class_conditioning": "adaln"}], ids=str)
@pytest.mark.parametrize("index", [0, 1])
def test_capture_is_whole_on_the_device_of_the_flow(options, index):
    if torch.cuda.device_count() <= index:
        pytest.skip("one device")
    flow = flow_on(f"cuda:{index}", **options)
    noise, labels = inputs_of(flow)
    with counted() as counts:
        tokens = flow.inverse(noise, labels, guidance=1.0, method=GRAPH)
    assert counts.outside_capture == 0
    assert tokens.device == noise.device
    assert torch.cuda.current_device() == 0


def test_guide_of_another_flow_is_in_the_graph():
    flow, guide = flow_on(), flow_on(width=32)
    noise, labels = inputs_of(flow)
    flow.inverse(noise, labels, guidance=1.0, guide=guide)
    with counted() as counts:
        flow.inverse(noise, labels, guidance=1.0, guide=guide)
    assert counts.outside_capture == 0
    assert counts.graph_launches == steps_of(flow)
    assert counts.operations < 200 * len(flow.blocks)


def test_memory_does_not_grow_over_calls():
    flow = flow_on()
    allocated = []
    for rows in (4, 2, 4, 2, 4):  # a full batch and a last one
        noise, labels = inputs_of(flow, rows)
        flow.inverse(noise, labels, method=GRAPH)
        del noise, labels
        allocated.append(torch.cuda.memory_allocated())
    assert allocated[1:] == [allocated[1]] * 4


def test_graphs_go_with_their_flow():
    gc.collect()
    before = torch.cuda.memory_allocated()
    flow = flow_on()
    noise, labels = inputs_of(flow)
    flow.inverse(noise, labels, method=GRAPH)
    assert len(decode_graph._KEPT) == 2
    del flow, noise, labels
    gc.collect()
    assert len(decode_graph._KEPT) == 0
    # cuBLAS keeps a workspace for each of the two streams.
    assert torch.cuda.memory_allocated() <= before + 2 * 64 * 2**20


def test_weights_and_norms_are_cast_once_under_autocast():
    """Steps launch what those of bfloat16 weights launch.

    With weights that are cast in every step it was 19 more a layer, with norms in float32 7.
    """
    flow, half = flow_on(), flow_on().bfloat16()
    noise, labels = inputs_of(flow)
    with torch.autocast("cuda", torch.bfloat16), counted() as autocast:
        flow.inverse(noise, labels, method=EAGER)
    with counted() as native:
        half.inverse(noise, labels, method=EAGER)
    print(f"autocast {autocast.launches}, bfloat16 weights {native.launches}")
    assert autocast.launches < 1.1 * native.launches


def test_graph_equals_eager_steps():
    if IS_NULL:
        pytest.skip("the null device computes no numbers")
    flow = build_flow(torch.float32, num_classes=3).cuda()
    for seed in range(2):
        noise = torch.randn(3, flow.config.num_tokens, flow.config.token_dim, device="cuda")
        labels = torch.randint(3, (3,), device="cuda")
        for guidance in (0.0, 1.5):
            tokens = [
                flow.inverse(noise, labels, guidance=guidance, method=method) for method in (GRAPH, EAGER)
            ]
            torch.testing.assert_close(*tokens, atol=1e-3, rtol=1e-3, msg=f"seed {seed}, guidance {guidance}")
