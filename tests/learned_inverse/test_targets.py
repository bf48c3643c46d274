"""Errors in closed form, and the states that they compare."""

import torch

from simflow_plugin.learned_inverse.targets import relative_error, state_error
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


def test_state_error_is_a_mean_over_states_whatever_their_scale():
    states = [torch.ones(2, 3, 1), 200 * torch.ones(2, 3, 1)]
    predictions = [state * factor for state, factor in zip(states, (2, 0), strict=True)]
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
        passes = [block.passes for block in statistics.blocks]
        assert passes == [1, 1, 1] if torch.equal(guess[0], tokens) else min(passes) > 1


def test_a_guess_keeps_the_first_token_of_an_output_shift():
    flow = build_flow(family="tarflow")
    tokens, condition = inputs_for(flow)
    noise = flow(tokens, **condition).noise
    guess = [torch.full_like(tokens, 7.0)] * 3
    found = flow.inverse(noise, **condition, method={"name": "jacobi", "tolerance": 0.0}, guess=guess)
    torch.testing.assert_close(found, tokens, atol=1e-8, rtol=1e-8)
