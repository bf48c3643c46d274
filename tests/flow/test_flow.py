"""The flow as a whole: its density, its hidden tokens, its bad input, and that a forward pass changes nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from simflow_plugin.contracts import NO_LABEL
from simflow_plugin.errors import ShapeError
from simflow_plugin.flow import FlowConfig, TransformerFlow, drop_labels
from tests.flow.builders import build_flow, inputs_for

BOTH_FAMILIES = pytest.mark.parametrize("family", ["starflow", "tarflow"])


@BOTH_FAMILIES
def test_new_flow_is_the_identity(family: str) -> None:
    config = FlowConfig(
        family=family, width=16, layers_per_block=(1, 2), head_dim=8, token_dim=3, grid_size=(2, 2)
    )
    tokens = torch.randn(2, 4, 3)
    output = TransformerFlow(config)(tokens)
    torch.testing.assert_close(output.noise, tokens)
    torch.testing.assert_close(output.logdet, torch.zeros(2), atol=1e-5, rtol=0)


@BOTH_FAMILIES
def test_density_integrates_to_one(family: str) -> None:
    flow = build_flow(family=family, grid_size=(1, 2), token_dim=1, layers_per_block=(1, 1))
    axis = torch.linspace(-8, 8, 161, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)[:, :, None]  # (N, T=2, D=1)
    with torch.no_grad():
        mass = flow.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert float(mass) == pytest.approx(1.0, abs=1e-3)


@BOTH_FAMILIES
def test_trained_flow_recovers_the_entropy_of_a_gaussian(family: str) -> None:
    generator = torch.Generator().manual_seed(0)
    factor = torch.tensor([[1.5, 0, 0, 0], [0.8, 0.9, 0, 0], [-0.5, 0.3, 1.2, 0], [0.2, -0.6, 0.4, 0.8]])
    gaussian = torch.distributions.MultivariateNormal(torch.zeros(4), scale_tril=factor)
    config = FlowConfig(
        family=family, width=16, layers_per_block=(1, 1), head_dim=8, token_dim=2, grid_size=(1, 2)
    )
    flow = TransformerFlow(config)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)

    def draw(rows: int) -> torch.Tensor:
        return (torch.randn(rows, 4, generator=generator) @ factor.T).view(rows, 2, 2)

    for _ in range(300):
        optimizer.zero_grad()
        (-flow.log_prob(draw(256)).mean()).backward()
        optimizer.step()
        schedule.step()
    tokens = draw(20000)
    with torch.no_grad():
        # Both on the same draws: their noise cancels, and what is left is the gap of the flow itself.
        gap = (gaussian.log_prob(tokens.flatten(1)) - flow.log_prob(tokens)).mean()
    assert abs(float(gap)) < 0.01 * float(gaussian.entropy())


@BOTH_FAMILIES
@pytest.mark.parametrize("first_order", ["identity", "flip"])
@pytest.mark.parametrize("adaln", [{}, *({"adaln_gates": gates} for gates in (True, False))], ids=str)
def test_noise_of_a_block_depends_on_earlier_tokens_only(
    family: str, first_order: str, adaln: dict[str, Any]
) -> None:
    options = {"num_classes": 3, "class_conditioning": "adaln", **adaln} if adaln else {}
    flow = build_flow(family=family, layers_per_block=(2,), first_order=first_order, **options)
    tokens, condition = inputs_for(flow, rows=1)
    size, dim = flow.config.num_tokens, flow.config.token_dim
    jacobian = torch.autograd.functional.jacobian(lambda row: flow(row, **condition).noise, tokens)
    reach = jacobian.reshape(size, dim, size, dim).abs().amax(dim=(1, 3))  # of noise t from token s
    later = torch.ones(size, size).triu(1) if first_order == "identity" else torch.ones(size, size).tril(-1)
    assert torch.count_nonzero(reach[later.bool()]) == 0
    assert torch.count_nonzero(reach[later.T.bool()]) == later.sum()


@BOTH_FAMILIES
def test_every_parameter_gets_a_gradient(family: str) -> None:
    flow = build_flow(family=family, num_classes=3, qk_norm=True, gated_attention=True, mlp="swiglu")
    tokens, condition = inputs_for(flow, rows=4)
    flow.log_prob(tokens, **condition).sum().backward()
    without = [name for name, p in flow.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_forward_changes_nothing() -> None:
    flow = build_flow(num_classes=3).train()
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    tokens, condition = inputs_for(flow)
    first = flow(tokens, **condition)
    flow.inverse(tokens, **condition, guidance=1.0)
    second = flow.eval()(tokens, **condition)
    assert torch.equal(first.noise, second.noise)
    assert all(torch.equal(before[name], value) for name, value in flow.state_dict().items())


def test_saved_weights_load_and_agree() -> None:
    flow, other = build_flow(num_classes=3), build_flow(num_classes=3, seed=5)
    other.load_state_dict(flow.state_dict())
    tokens, condition = inputs_for(flow)
    assert torch.equal(flow(tokens, **condition).noise, other(tokens, **condition).noise)


def test_config_rebuilds_itself_from_its_dump() -> None:
    config = build_flow(num_classes=3, size="S").config
    assert FlowConfig(**config.model_dump()) == config


def test_block_logdets_add_up() -> None:
    flow = build_flow()
    output = flow(inputs_for(flow)[0])
    assert output.block_logdets.shape == (3, 3)
    torch.testing.assert_close(output.block_logdets.sum(0), output.logdet)


@pytest.mark.parametrize("block", [1, 2])
def test_hidden_tokens_are_in_raster_order(block: int) -> None:
    """Hidden token t reads the tokens before t in its block's order: perturb one and see which change."""
    flow = build_flow(layers_per_block=(1, 1, 1))
    tokens, _ = inputs_for(flow, rows=1)
    moved = tokens.clone()
    moved[0, 2] += 1.0
    options = {"hidden_layer": 1, "hidden_block": block}
    difference = (flow(moved, **options).hidden - flow(tokens, **options).hidden).abs().amax(dim=(0, 2))
    if block == 1:  # identity order: token 2 reaches hidden tokens 3, 4, 5
        assert (difference > 0).tolist() == [False, False, False, True, True, True]
    if block == 2:  # behind block 1, noise 2 .. 5 moved; flipped order: they reach hidden tokens 0 .. 4
        assert (difference > 0).tolist() == [True, True, True, True, True, False]


def test_hidden_tokens_come_from_the_deep_block_by_default() -> None:
    flow = build_flow(layers_per_block=(1, 2))
    tokens, _ = inputs_for(flow)
    by_default = flow(tokens, hidden_layer=2).hidden
    assert by_default.shape == (3, 6, 16)
    assert torch.equal(by_default, flow(tokens, hidden_layer=2, hidden_block=2).hidden)
    assert flow(tokens).hidden is None


def test_hidden_tokens_of_an_output_shift_have_read_their_own_token() -> None:
    flow = build_flow(family="tarflow", layers_per_block=(1,))
    tokens, _ = inputs_for(flow, rows=1)
    moved = tokens.clone()
    moved[0, 2] += 1.0
    difference = (
        (flow(moved, hidden_layer=1).hidden - flow(tokens, hidden_layer=1).hidden).abs().amax(dim=(0, 2))
    )
    assert (difference > 0).tolist() == [False, False, True, True, True, True]


@BOTH_FAMILIES
def test_no_labels_equal_null_labels(family: str) -> None:
    flow = build_flow(family=family, num_classes=3)
    tokens, _ = inputs_for(flow)
    null = torch.full((3,), NO_LABEL)
    assert torch.equal(flow(tokens).noise, flow(tokens, null).noise)
    assert not torch.equal(flow(tokens).noise, flow(tokens, torch.zeros(3, dtype=torch.int64)).noise)


def test_likelihood_is_float32_under_autocast() -> None:
    flow = build_flow(torch.float32, num_classes=3)
    tokens, condition = inputs_for(flow)
    exact = flow.log_prob(tokens, **condition)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = flow(tokens, **condition)
        log_prob = flow.log_prob(tokens, **condition)
    assert output.noise.dtype == output.logdet.dtype == log_prob.dtype == torch.float32
    torch.testing.assert_close(log_prob, exact, rtol=0.02, atol=0.2)


def test_half_precision_flow_samples_in_float32() -> None:
    flow = build_flow(torch.bfloat16, num_classes=3)
    tokens = flow.sample(torch.tensor([0, 1]), generator=torch.Generator().manual_seed(0))
    assert tokens.dtype == torch.float32
    assert bool(torch.isfinite(tokens).all())


def test_compiler_traces_the_forward_pass_without_a_break() -> None:
    flow = build_flow(torch.float32, num_classes=3)
    tokens, condition = inputs_for(flow)
    compiled = torch.compile(flow, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(tokens, **condition).noise, flow(tokens, **condition).noise)


def test_dropped_labels_follow_the_uniform_numbers() -> None:
    labels = drop_labels(torch.tensor([4, 5, 6]), torch.tensor([0.05, 0.1, 0.9]), 0.1)
    assert labels.tolist() == [NO_LABEL, 5, 6]


def bad_inputs() -> dict[str, tuple[dict, str]]:
    good = torch.zeros(2, 6, 3, dtype=torch.float64)
    labels = torch.zeros(2, dtype=torch.int64)
    nan = good.clone()
    nan[1, 2, 0] = math.nan
    return {
        "wrong token count": ({"tokens": good[:, :5], "labels": labels}, "tokens: found"),
        "integer tokens": ({"tokens": good.long(), "labels": labels}, "tokens: found"),
        "NaN": ({"tokens": nan, "labels": labels}, "NaN or infinite values in 1 of 2 rows"),
        "label too large": ({"tokens": good, "labels": labels + 3}, "expected 0 to 2"),
        "label below -1": ({"tokens": good, "labels": labels - 2}, "expected 0 to 2"),
        "float labels": ({"tokens": good, "labels": labels.double()}, "torch.int64"),
        "too few labels": ({"tokens": good, "labels": labels[:1]}, "labels: found"),
        "condition": ({"tokens": good, "condition": good}, "takes no condition features"),
        "hidden layer": ({"tokens": good, "hidden_layer": 3}, "hidden_layer: found 3, expected 1 to 2"),
        "hidden block": ({"tokens": good, "hidden_layer": 1, "hidden_block": 4}, "hidden_block: found 4"),
    }


@pytest.mark.parametrize("case", bad_inputs())
def test_bad_input_is_named(case: str) -> None:
    arguments, message = bad_inputs()[case]
    with pytest.raises(ShapeError, match=message):
        build_flow(num_classes=3)(**arguments)


def test_flow_takes_the_condition_that_it_was_built_for() -> None:
    plain = build_flow()
    with pytest.raises(ShapeError, match="this flow has no labels"):
        plain(inputs_for(plain)[0], torch.zeros(3, dtype=torch.int64))
    flow = build_flow(condition_dim=3, condition_length=2, condition_frequencies=0)
    tokens, condition = inputs_for(flow)
    with pytest.raises(ShapeError, match="condition: missing"):
        flow(tokens)
    with pytest.raises(ShapeError, match=r"expected \(3, 2, 3\)"):
        flow(tokens, condition=condition["condition"][:, :1])
    with pytest.raises(ShapeError, match="null_condition: guidance > 0 needs"):
        flow.inverse(tokens, **condition, guidance=1.0)


@pytest.mark.parametrize("method", ["cached", "naive", "jacobi"])
@pytest.mark.parametrize("options", [{}, {"num_classes": 3}])
def test_float64_tokens_are_taken_by_a_float32_flow(method: str, options: dict[str, Any]) -> None:
    """numpy's numbers are float64; the rotary table is in the precision of the weights."""
    flow = build_flow(torch.float32, **options)
    noise, condition = inputs_for(flow)
    tokens = flow.inverse(noise.double(), **condition, method=method)
    torch.testing.assert_close(tokens.float(), flow.inverse(noise, **condition), rtol=1e-4, atol=1e-4)
    assert flow.log_prob(tokens, **condition).isfinite().all()


@pytest.mark.parametrize(
    ("null", "message"),
    [
        ("shorter", r"null_condition: found \(1, 1, 4\), expected \(1, 2, 4\)"),
        ("rows", r"null_condition: found \(2, 2, 4\), expected \(3, 2, 4\)"),
        ("nan", "null_condition: NaN"),
    ],
)
def test_null_condition_that_does_not_fit_is_named(null: str, message: str) -> None:
    flow = build_flow(condition_dim=4, condition_frequencies=2)
    noise, condition = inputs_for(flow)
    features = condition["condition"]
    wrong = {"shorter": features[:1, :1], "rows": features[:2], "nan": features * torch.nan}[null]
    with pytest.raises(ShapeError, match=message):
        flow.inverse(noise, condition=features, null_condition=wrong, guidance=1.0)


def test_condition_with_nan_is_named() -> None:
    flow = build_flow(condition_dim=4, condition_frequencies=2)
    noise, condition = inputs_for(flow)
    with pytest.raises(ShapeError, match="condition: NaN"):
        flow.log_prob(noise, condition=condition["condition"] * torch.nan)
