"""Properties of every guidance rule, and where its weight applies."""

from __future__ import annotations

import math

import pytest
import torch

from simflow_plugin.errors import ConfigError, RegistryError, ShapeError
from simflow_plugin.flow.affine import Affine
from simflow_plugin.flow.guidance import GuidanceContext, GuidanceRule, build_guidance
from simflow_plugin.registry import GUIDANCE
from tests.flow.builders import build_flow, inputs_for

ALL_RULES = pytest.mark.parametrize("name", GUIDANCE.names())


def rule_of(name: str, **options: object) -> GuidanceRule:
    return build_guidance({"name": name, **options}, GuidanceContext(num_blocks=3))


def random_affine(seed: int) -> Affine:
    generator = torch.Generator().manual_seed(seed)
    return Affine(*torch.randn(2, 2, 4, 3, generator=generator, dtype=torch.float64))


@ALL_RULES
def test_weight_zero_is_the_conditional_model(name: str) -> None:
    conditional, unconditional = random_affine(0), random_affine(1)
    guided = rule_of(name).combine(conditional, unconditional, torch.zeros(4, 1))
    assert torch.equal(torch.stack(guided), torch.stack(conditional))


@ALL_RULES
def test_equal_halves_give_back_the_same(name: str) -> None:
    affine = random_affine(0)
    guided = rule_of(name).combine(affine, affine, torch.full((4, 1), 7.5))
    torch.testing.assert_close(torch.stack(guided), torch.stack(affine))


@pytest.mark.parametrize("weight", [0.0, 1e-6, 1.0, 1e3, 1e30])
def test_starflow_scale_is_positive_and_finite_for_any_weight(weight: float) -> None:
    spread = torch.linspace(-40, 40, 12).view(1, 4, 3)
    conditional, unconditional = Affine(spread, spread), Affine(-spread, torch.zeros_like(spread))
    guided = rule_of("starflow").combine(conditional, unconditional, torch.full((4, 1), weight))
    assert bool(torch.isfinite(torch.stack(guided)).all())
    assert bool((guided.log_scale <= conditional.log_scale).all())


def test_starflow_rule_is_the_published_formula() -> None:
    conditional, unconditional, weight = random_affine(0), random_affine(1), 1.7
    s_c, s_u = conditional.log_scale.exp(), unconditional.log_scale.exp()
    ratio = (s_c / s_u).clamp(max=1.0) ** 2
    denominator = 1 + weight - weight * ratio
    shift = ((1 + weight) * conditional.shift - weight * ratio * unconditional.shift) / denominator
    guided = rule_of("starflow").combine(
        conditional, unconditional, torch.full((4, 1), weight, dtype=torch.float64)
    )
    torch.testing.assert_close(guided.shift, shift)
    torch.testing.assert_close(guided.log_scale.exp(), s_c / denominator.sqrt())


@pytest.mark.parametrize("name", ["linear", "linear_sigma"])
def test_linear_rules_are_the_published_formulas(name: str) -> None:
    conditional, unconditional, weight = random_affine(0), random_affine(1), 0.3
    guided = rule_of(name).combine(
        conditional, unconditional, torch.full((4, 1), weight, dtype=torch.float64)
    )
    torch.testing.assert_close(
        guided.shift, conditional.shift + weight * (conditional.shift - unconditional.shift)
    )
    if name == "linear":
        expected = conditional.log_scale + weight * (conditional.log_scale - unconditional.log_scale)
        torch.testing.assert_close(guided.log_scale, expected)
    else:
        s_c, s_u = conditional.log_scale.exp(), unconditional.log_scale.exp()
        expected = s_c + weight * (s_c - s_u)
        is_kept = expected > 1e-3 * s_c
        assert bool(is_kept.any())
        torch.testing.assert_close(guided.log_scale.exp()[is_kept], expected[is_kept])


@pytest.mark.parametrize("weight", [0.0, 1e-6, 1.0, 1e3])
def test_sigma_stays_positive_and_finite(weight: float) -> None:
    spread = torch.linspace(-40, 40, 12).view(1, 4, 3)
    conditional, unconditional = Affine(spread, spread), Affine(-spread, -3 * spread)
    guided = rule_of("linear_sigma").combine(conditional, unconditional, torch.full((4, 1), weight))
    assert bool(torch.isfinite(torch.stack(guided)).all())
    assert bool((guided.log_scale >= conditional.log_scale + math.log(0.99e-3)).all())


@pytest.mark.parametrize(
    ("options", "guided"),
    [
        ({"name": "starflow"}, [True, True, True]),
        ({"name": "starflow", "first_block_only": True}, [False, False, True]),
        ({"name": "linear_sigma"}, [False, False, True]),  # iTARFlow's default
        ({"name": "linear_sigma", "first_block_only": False}, [True, True, True]),
        ({"name": "starflow", "block_interval": (2, 3)}, [False, True, True]),  # from 1, in training order
    ],
)
def test_blocks_that_a_rule_guides(options: dict, guided: list[bool]) -> None:
    rule = build_guidance(options, GuidanceContext(3))
    assert [rule.weights(1.0, block, 4, torch.zeros(())) is not None for block in range(3)] == guided


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"annealed": True}, [0.0, 0.5, 1.0, 1.5, 2.0]),
        ({"token_interval": (0.2, 0.75)}, [0.0, 2.0, 2.0, 2.0, 0.0]),
    ],
)
def test_weights_count_in_generation_order(options: dict, expected: list[float]) -> None:
    weights = rule_of("linear", **options).weights(2.0, 0, 5, torch.zeros(()))
    assert weights is not None
    assert weights.flatten().tolist() == expected


def test_tokens_outside_the_interval_are_sampled_without_guidance() -> None:
    flow = build_flow(num_classes=3, layers_per_block=(2,))
    noise, condition = inputs_for(flow)
    plain = flow.inverse(noise, **condition)
    rule = {"name": "starflow", "token_interval": (0.5, 1.0)}
    late = flow.inverse(noise, **condition, guidance=3.0, guidance_rule=rule)
    torch.testing.assert_close(late[:, :3], plain[:, :3])
    assert float((late[:, 3:] - plain[:, 3:]).abs().max()) > 1e-4


def test_unlabelled_rows_are_not_changed_by_guidance() -> None:
    flow = build_flow(num_classes=3)
    noise, condition = inputs_for(flow)  # its last row has no label
    plain, guided = (flow.inverse(noise, **condition, guidance=weight) for weight in (0.0, 3.0))
    torch.testing.assert_close(guided[-1], plain[-1])
    assert float((guided[:-1] - plain[:-1]).abs().max()) > 1e-4


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf"), "1", None, 1e39])
def test_weight_that_is_no_number_of_float32_above_zero_is_refused(weight: object) -> None:
    flow = build_flow(num_classes=3)
    noise, condition = inputs_for(flow)
    with pytest.raises(ShapeError, match="guidance: found"):
        flow.inverse(noise, **condition, guidance=weight)


def test_guidance_without_a_condition_is_refused() -> None:
    flow = build_flow()
    with pytest.raises(ShapeError, match="no condition to guide towards"):
        flow.inverse(inputs_for(flow)[0], guidance=1.0)


def test_unknown_rule_lists_the_known_ones() -> None:
    with pytest.raises(RegistryError, match=r"Did you mean `starflow`\? Known: .*linear"):
        rule_of("starflw")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"anneal": True}, "anneal"),
        ({"token_interval": (0.9, 0.1)}, "0 <= from <= to <= 1"),
        ({"block_interval": (1, 4)}, "the flow has 3 blocks"),
        ({"block_interval": (0, 2)}, "1 <= first <= last"),
        ({"block_interval": (2, 3), "first_block_only": True}, "no effect with first_block_only"),
    ],
)
def test_bad_option_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rule_of("starflow", **options)


@pytest.mark.parametrize("rule", [{"annealed": True}, {"name": 5}])
def test_rule_without_a_name_lists_the_known_ones(rule: dict) -> None:
    with pytest.raises(ConfigError, match=r"guidance_rule: found \{.*Known: linear, linear_sigma, starflow"):
        build_guidance(rule, GuidanceContext(3))


@pytest.mark.parametrize("where", [{"block_interval": (1, 1)}, {"token_interval": (0.5, 0.5)}])
def test_guidance_that_reaches_no_conditional_block_is_refused(where: dict) -> None:
    flow = build_flow(num_classes=3)
    noise, condition = inputs_for(flow)
    rule = {"name": "starflow", **where}
    with pytest.raises(ConfigError, match="guidance 2 has no effect; conditional blocks: 3"):
        flow.inverse(noise, **condition, guidance=2.0, guidance_rule=rule)
    flow.inverse(noise, **condition, guidance=0.0, guidance_rule=rule)
