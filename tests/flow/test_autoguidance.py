"""Autoguidance: a weaker flow in place of the unconditional half, in every sampler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from simflow_plugin.contracts import NO_LABEL
from simflow_plugin.errors import ConfigError
from simflow_plugin.flow import Jacobi, TransformerFlow
from tests.flow.builders import build_flow, inputs_for

METHODS: dict[str, Any] = {
    "cached": "cached",
    "static": {"name": "cached", "step": "static"},
    "jacobi": Jacobi(segment=4, tolerance=0.0, max_iterations=4),
    "auto": "auto",
}


def flows(**options: Any) -> tuple[TransformerFlow, TransformerFlow]:
    """Return a flow and a narrower one."""
    options = {"num_classes": 3, "conditional_blocks": "all"} | options
    return build_flow(**options), build_flow(seed=5, width=8, head_dim=8, **options)


def sample(flow: TransformerFlow, guide: TransformerFlow, weight: float, **options: Any) -> Tensor:
    noise, condition = inputs_for(flow)
    return flow.inverse(noise, **condition, guidance=weight, guide=guide, **options)


@pytest.mark.parametrize("conditioning", ["token", "add", "adaln"])
@pytest.mark.parametrize("blocks", [None, (1, 3)])
@pytest.mark.parametrize("method", METHODS)
def test_every_sampler_gives_the_numbers_of_naive(
    method: str, blocks: tuple[int, int] | None, conditioning: str
) -> None:
    flow, guide = flows(class_conditioning=conditioning)
    rule = {"name": "starflow", "block_interval": blocks}
    expected = sample(flow, guide, 1.5, method="naive", guidance_rule=rule)
    sampled = sample(flow, guide, 1.5, method=METHODS[method], guidance_rule=rule)
    torch.testing.assert_close(sampled, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("rule", ["starflow", "linear", "linear_sigma"])
def test_a_flow_guided_by_itself_is_itself(rule: str) -> None:
    flow, _ = flows()
    noise, condition = inputs_for(flow)
    plain = flow.inverse(noise, **condition)
    torch.testing.assert_close(sample(flow, flow, 2.0, guidance_rule=rule), plain, rtol=0, atol=1e-10)


@pytest.mark.parametrize("rule", ["starflow", "linear", "linear_sigma"])
def test_a_guide_without_labels_gives_classifier_free_guidance(rule: str) -> None:
    """The guide is the flow that sees no label: its null embedding moves into the bias of the input."""
    options = {"class_conditioning": "add", "conditional_blocks": "deep"}
    flow = build_flow(num_classes=3, **options)
    guide = build_flow(**options)
    state = dict(flow.state_dict())
    last = f"blocks.{len(flow.blocks) - 1}"
    embedding = flow.deep_block.embed_condition(torch.tensor([NO_LABEL])).added
    assert embedding is not None
    state[f"{last}.proj_in.bias"] = state[f"{last}.proj_in.bias"] + embedding.flatten()
    guide.load_state_dict({key: value for key, value in state.items() if ".condition." not in key})
    noise, condition = inputs_for(flow)
    expected = flow.inverse(noise, **condition, guidance=1.5, guidance_rule=rule)
    for method in METHODS.values():
        sampled = sample(flow, guide, 1.5, guidance_rule=rule, method=method)
        torch.testing.assert_close(sampled, expected, rtol=0, atol=1e-9)


def test_weight_zero_asks_the_guide_nothing() -> None:
    flow, guide = flows()
    noise, condition = inputs_for(flow)
    torch.testing.assert_close(sample(flow, guide, 0.0), flow.inverse(noise, **condition), rtol=0, atol=0)


def test_first_generated_block_is_guided_by_the_weaker_flow_at_the_same_tokens() -> None:
    """By hand, one token after the other: the rule on the parameters of both deep blocks."""
    flow, guide = flows(layers_per_block=(2,))
    noise, condition = inputs_for(flow)
    tokens = flow.inverse(noise, **condition, guidance=0.75, guide=guide, guidance_rule="linear")
    # u = (x - mu) / sigma with the guided parameters: recover both from forward passes on the sample.
    parameters = []
    for model in (flow, guide):
        block = model.deep_block
        ordered = block.reorder(tokens)
        embedding = block.embed_condition(condition["labels"])
        hidden = block.embed_inputs(block.shift_inputs(ordered), None, embedding)
        prefix = embedding.prefix
        assert prefix is not None
        rotation = model._rotation(condition["labels"])
        hidden = torch.cat([prefix, hidden], dim=1)
        hidden = block.run_layers(hidden, rotation, embedding, [None] * len(block.layers), 0)
        parameters.append(block.head(hidden[:, prefix.shape[1] :]))
    strong, weak = parameters
    shift = strong.shift + 0.75 * (strong.shift - weak.shift)
    log_scale = strong.log_scale + 0.75 * (strong.log_scale - weak.log_scale)
    recovered = (flow.deep_block.reorder(tokens) - shift) * torch.exp(-log_scale)
    torch.testing.assert_close(recovered, flow.deep_block.reorder(noise), rtol=0, atol=1e-9)


def test_only_the_block_that_reads_the_noise_is_guided_unless_others_are_named() -> None:
    flow, guide = flows()
    for block in guide.shallow_blocks:
        torch.nn.init.normal_(block.proj_out.weight)
    changed, rule = flows()[1], {"name": "starflow", "block_interval": (1, 3)}
    torch.testing.assert_close(sample(flow, guide, 1.0), sample(flow, changed, 1.0), rtol=0, atol=0)
    everywhere = [sample(flow, other, 1.0, guidance_rule=rule) for other in (guide, changed)]
    assert float((everywhere[0] - everywhere[1]).abs().max()) > 1e-4


@pytest.mark.parametrize(
    "rule", [{"token_interval": (0.5, 0.5)}, {"block_interval": (1, 1), "token_interval": (0.5, 0.5)}]
)
def test_a_rule_that_guides_nothing_is_refused(rule: dict[str, Any]) -> None:
    flow, guide = flows()
    with pytest.raises(ConfigError, match="guides no token of a guided block"):
        sample(flow, guide, 1.0, guidance_rule={"name": "starflow", **rule})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_dim": 4}, "token_dim is 4, the model's 3"),
        ({"layers_per_block": (1, 1)}, "num_blocks is 2"),
        ({"first_order": "flip"}, "first_order is flip"),
        ({"num_classes": 4}, "num_classes is 4"),
    ],
)
def test_guides_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    flow, _ = flows()
    guide = flows(**changes)[1]
    with pytest.raises(ConfigError, match=message):
        sample(flow, guide, 1.0)
