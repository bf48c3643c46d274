"""The forward pass of guided sampling is the inverse of the guided inverse, whatever the rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from simflow_plugin.errors import ShapeError
from simflow_plugin.flow.guidance import GuidanceContext, build_guidance
from simflow_plugin.flow.guided_forward import guided_trajectory
from tests.flow.builders import build_flow, inputs_for

FLOWS: dict[str, dict[str, Any]] = {
    "starflow": {},
    "tarflow": {"family": "tarflow"},
    "adaln": {"class_conditioning": "adaln", "conditional_blocks": "all"},
    "unit": {"scale": "unit"},
}
RULES: dict[str, dict[str, Any]] = {
    "starflow": {"name": "starflow"},
    "annealed": {"name": "linear", "annealed": True, "token_interval": (0.2, 0.9)},
    "sigma": {"name": "linear_sigma"},
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", FLOWS)
def test_it_undoes_guided_sampling_with_a_weight_for_each_row(kind: str, rule: str) -> None:
    flow = build_flow(num_classes=3, **FLOWS[kind])
    noise, condition = inputs_for(flow)
    guidance = torch.tensor([0.0, 0.75, 2.0], dtype=torch.float64)  # exact in float32 too
    tokens = torch.cat(
        [
            flow.inverse(
                noise[[row]], condition["labels"][[row]], guidance=float(w), guidance_rule=RULES[rule]
            )
            for row, w in enumerate(guidance)
        ]
    )
    built = build_guidance(RULES[rule], GuidanceContext(flow.config.num_blocks))
    states = guided_trajectory(flow, tokens, condition["labels"], guidance, built)
    assert len(states) == flow.config.num_blocks + 1
    torch.testing.assert_close(states[-1], noise, rtol=0, atol=1e-9)


def test_without_a_weight_it_is_the_trajectory_and_gradients_reach_the_tokens() -> None:
    flow = build_flow(num_classes=3)
    tokens, condition = inputs_for(flow)
    rule = build_guidance("starflow", GuidanceContext(flow.config.num_blocks))
    tokens.requires_grad_()
    states = guided_trajectory(flow, tokens, condition["labels"], torch.zeros(3), rule)
    for found, expected in zip(states, flow.trajectory(tokens, condition["labels"]), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(states[-1].square().sum(), tokens)
    assert bool((gradient != 0).all())


def test_bad_input_is_refused() -> None:
    rule = build_guidance("starflow", GuidanceContext(3))
    plain = build_flow()
    with pytest.raises(ShapeError, match="no classes"):
        guided_trajectory(plain, inputs_for(plain)[0], torch.zeros(3, dtype=torch.int64), torch.ones(3), rule)
    flow = build_flow(num_classes=3)
    tokens, condition = inputs_for(flow)
    with pytest.raises(ShapeError, match=r"found \(1,\), expected \(3,\)"):
        guided_trajectory(flow, tokens, condition["labels"], torch.ones(1), rule)
