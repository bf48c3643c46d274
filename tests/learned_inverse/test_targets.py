"""Errors in closed form, and the states that they compare."""

import torch

from simflow_plugin.flow.guidance import GuidanceContext
from simflow_plugin.flow.guidance.rule import build_guidance
from simflow_plugin.learned_inverse.targets import relative_error, round_trip_error, state_error
from tests.flow.builders import build_flow, inputs_for


def test_relative_error_is_one_for_zero_and_scale_free():
    target = torch.randn(4, 5, 3)
    assert float(relative_error(torch.zeros_like(target), target)) == 1.0
    torch.testing.assert_close(relative_error(1.5 * target, target), torch.tensor(0.25))
    torch.testing.assert_close(relative_error(1500 * target, 1000 * target), torch.tensor(0.25))


def test_no_gradient_reaches_a_target():
    target = torch.randn(2, 3, requires_grad=True)
    prediction = torch.randn(2, 3, requires_grad=True)
    relative_error(prediction, target).backward()
    assert target.grad is None
    assert prediction.grad is not None


def test_the_round_trip_of_the_exact_inverse_has_no_error():
    flow = build_flow(num_classes=4)
    noise, condition = inputs_for(flow)
    labels, weight = condition["labels"], 0.75
    rule = build_guidance("starflow", GuidanceContext(flow.config.num_blocks))
    exact = flow.inverse(noise, labels, guidance=weight)
    guidance = torch.full((len(noise),), weight)
    assert float(round_trip_error(flow, rule, exact, noise, labels, guidance).detach()) < 1e-12
    off = exact.clone().requires_grad_()
    error = round_trip_error(flow, rule, off + 0.1, noise, labels, guidance)
    assert float(error.detach()) > 1e-4
    (gradient,) = torch.autograd.grad(error, off)
    assert bool((gradient != 0).any())


def test_the_round_trip_of_an_affine_flow_has_a_closed_form():
    """f(x) = (x - b) / s with constants: an error e of the tokens is e / s of the noise."""
    flow = build_flow(torch.float64, layers_per_block=(1,))
    with torch.no_grad():
        flow.deep_block.proj_out.weight.zero_()
    noise, _ = inputs_for(flow)
    rule = build_guidance("starflow", GuidanceContext(1))
    exact, off = flow.inverse(noise), torch.randn_like(noise)
    scale = flow.inverse(torch.ones_like(noise)) - flow.inverse(torch.zeros_like(noise))
    expected = (off / scale).square().mean() / noise.square().mean()
    found = round_trip_error(flow, rule, exact + off, noise, None, torch.zeros(3))
    torch.testing.assert_close(found, expected.float())


def test_state_error_reads_the_rows_that_have_targets():
    states = [torch.ones(2, 3, 1), 2 * torch.ones(2, 3, 1)]
    predictions = [
        torch.cat([state * factor, torch.full((1, 3, 1), 1e6)])
        for state, factor in zip(states, (2, 0), strict=True)
    ]
    torch.testing.assert_close(state_error(predictions, states), torch.tensor(1.0))


def test_the_trajectory_starts_at_the_tokens_and_ends_at_the_noise():
    for options in ({}, {"scale": "unit"}, {"family": "tarflow", "num_classes": 4}):
        flow = build_flow(**options)
        tokens, condition = inputs_for(flow)
        states = flow.trajectory(tokens, **condition)
        assert len(states) == flow.config.num_blocks + 1
        assert torch.equal(states[0], tokens)
        torch.testing.assert_close(states[-1], flow(tokens, **condition).noise)


def test_a_guess_changes_the_passes_and_not_the_answer():
    flow = build_flow(num_classes=4)
    tokens, condition = inputs_for(flow)
    states = flow.trajectory(tokens, **condition)
    exact = {"name": "jacobi", "segment": 6, "tolerance": 1e-9}
    for guess in (states[:-1], [torch.randn_like(tokens)] * 3):
        found, statistics = flow.inverse(
            states[-1], **condition, method=exact, guess=guess, return_statistics=True
        )
        torch.testing.assert_close(found, tokens, atol=1e-7, rtol=1e-7)
        if guess is not None and torch.equal(guess[0], tokens):
            assert [block.passes for block in statistics.blocks] == [1, 1, 1]
        else:
            assert min(block.passes for block in statistics.blocks) > 1


def test_a_guess_keeps_the_first_token_of_an_output_shift():
    flow = build_flow(family="tarflow")
    tokens, condition = inputs_for(flow)
    noise = flow(tokens, **condition).noise
    guess = [torch.full_like(tokens, 7.0)] * 3
    found = flow.inverse(noise, **condition, method={"name": "jacobi", "tolerance": 0.0}, guess=guess)
    torch.testing.assert_close(found, tokens, atol=1e-8, rtol=1e-8)
