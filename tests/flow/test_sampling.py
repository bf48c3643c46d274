"""Sampling methods: how they are named, what they report, and when they are exact."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from simflow_plugin.errors import ConfigError, ShapeError
from simflow_plugin.flow import Auto, Jacobi, SamplingStatistics
from simflow_plugin.flow.kv_cache import product_dtype
from simflow_plugin.flow.layers import RmsNorm
from simflow_plugin.flow.packing import cast_copy
from simflow_plugin.flow.sampling import inversion, jacobi
from simflow_plugin.flow.sampling import method_choice as auto
from tests.flow.builders import build_flow, inputs_for

LONG = {"grid_size": (6, 6), "num_classes": 3}


def sample_with(
    method: Any, guidance: float = 0.0, **options: Any
) -> tuple[torch.Tensor, SamplingStatistics]:
    flow = build_flow(**(LONG | options))
    noise, condition = inputs_for(flow)
    return flow.inverse(noise, **condition, guidance=guidance, method=method, return_statistics=True)


def test_deep_block_is_sampled_first() -> None:
    _, statistics = sample_with("cached")
    assert [block.block for block in statistics.blocks] == [3, 2, 1]
    assert [block.passes for block in statistics.blocks] == [36, 36, 36]


@pytest.mark.parametrize("family", ["starflow", "tarflow"])
@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_jacobi_within_tolerance_equals_cached(family: str, guidance: float) -> None:
    cached, _ = sample_with("cached", guidance, family=family)
    iterated, statistics = sample_with(
        Jacobi(segment=9, tolerance=1e-9, max_iterations=None), guidance, family=family
    )
    torch.testing.assert_close(iterated, cached, rtol=0, atol=1e-6)
    steps = 36 if family == "starflow" else 35
    for block in statistics.blocks:
        assert len(block.iterations) == 4
        assert sum(block.iterations) == block.passes <= steps
        assert 0 <= block.residual <= 1e-9


@torch.inference_mode()
@pytest.mark.parametrize("iterations", [1, 2, 3, 6])
@pytest.mark.parametrize(
    ("guidance", "options"),
    [
        (0.0, {"family": "starflow"}),
        (0.0, {"family": "tarflow"}),
        (1.5, {"family": "starflow", "num_kv_heads": 1}),
        (1.5, {"family": "tarflow", "num_kv_heads": 1, "first_order": "flip"}),
        (
            0.0,
            {
                "family": "starflow",
                "num_classes": None,
                "condition_dim": 6,
                "condition_frequencies": 2,
                "scale": "exp",
            },
        ),
    ],
)
def test_first_tokens_of_every_segment_are_exact_after_as_many_iterations(
    monkeypatch: pytest.MonkeyPatch, iterations: int, guidance: float, options: dict[str, Any]
) -> None:
    segment, states = 6, []
    solve = inversion.solve_jacobi
    monkeypatch.setattr(
        inversion, "solve_jacobi", lambda state, *of: (solve(state, *of), states.append(state))
    )
    method = Jacobi(segment=segment, tolerance=0.0, max_iterations=iterations)
    _, statistics = sample_with(method, guidance, **options)
    unsettled = 0
    for state, numbers in zip(states, statistics.blocks, strict=True):
        emitted = state.tokens[:, state.block.lag + 1 :].clone()
        passes = numbers.passes
        state = state.prefilled()
        error = (state.solve(0, state.num_steps) - emitted).abs().amax(dim=(0, 2))  # teacher forced: one pass
        place = torch.arange(state.num_steps) % segment
        assert error[place < iterations].max() < 1e-12
        unsettled += int((error[place >= iterations] > 1e-9).sum())
        # The last segment has nobody after it who would read its keys.
        num_cut_off = state.num_steps // segment - (state.num_steps % segment == 0)
        renewals = num_cut_off if iterations < segment else 0
        assert passes == sum(numbers.iterations) + renewals
    assert (unsettled > 0) == (iterations < segment - 1)


def test_jacobi_of_one_iteration_reports_its_residual() -> None:
    _, statistics = sample_with(Jacobi(segment=6, tolerance=0.0, max_iterations=1))
    assert all(block.iterations == [1] * 6 for block in statistics.blocks)
    assert all(block.residual > 1e-3 for block in statistics.blocks)
    assert "residual" in str(statistics)


def test_jacobi_of_the_identity_needs_one_pass_per_segment() -> None:
    flow = build_flow(**LONG)
    for block in flow.blocks:
        torch.nn.init.zeros_(block.proj_out.weight)
        torch.nn.init.zeros_(block.proj_out.bias)
    noise, condition = inputs_for(flow)
    tokens, statistics = flow.inverse(
        noise, **condition, method={"name": "jacobi", "segment": 12}, return_statistics=True
    )
    torch.testing.assert_close(tokens, noise)
    assert [block.passes for block in statistics.blocks] == [3, 3, 3]


def test_guess_that_overflows_does_not_reach_final_tokens() -> None:
    flow = build_flow(layers_per_block=(1,))
    noise, _ = inputs_for(flow)
    expected = flow.inverse(noise)
    poisoned = noise.clone()
    poisoned[:, -1] = 1e308  # its pass gives an infinite guess; the five tokens before it must not notice
    method = Jacobi(segment=6, tolerance=0.0, max_iterations=None)
    torch.testing.assert_close(flow.inverse(poisoned, method=method)[:, :5], expected[:, :5])


@pytest.mark.parametrize("guess", [float("nan"), float("inf"), -1e30])
def test_guesses_are_bounded(guess: float) -> None:
    assert abs(float(jacobi._tame(torch.tensor(guess)))) <= jacobi.GUESS_LIMIT


def test_method_can_differ_per_block() -> None:
    expected, _ = sample_with("cached")
    tokens, statistics = sample_with(
        ["jacobi", {"name": "jacobi", "tolerance": 0.0, "segment": 36}, "cached"]
    )
    assert [block.method for block in statistics.blocks] == ["cached", "jacobi", "jacobi"]
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("jacobi_is_cheap", [True, False])
def test_auto_picks_the_cheaper_and_says_why(monkeypatch: pytest.MonkeyPatch, jacobi_is_cheap: bool) -> None:
    # The clock is the number of passes, or of positions: then jacobi is cheap, or is not.
    unit = "passes" if jacobi_is_cheap else "steps"
    monkeypatch.setattr(auto, "_now", lambda state: float(getattr(state.statistics, unit)))
    expected, _ = sample_with("cached")
    tokens, statistics = sample_with(Auto(segment=8))
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-4)
    picked = "jacobi" if jacobi_is_cheap else "cached"
    assert [block.method for block in statistics.blocks] == [picked] * 3
    assert all("by jacobi" in block.reason and "by cached" in block.reason for block in statistics.blocks)


@pytest.mark.parametrize(
    ("residual", "previous", "expected"),
    [(1e-6, 1.0, 0.0), (1e-2, 1e-1, 3.0), (1e-1, math.inf, math.inf), (2.0, 1.0, math.inf)],
)
def test_residuals_forecast_the_passes_to_go(residual: float, previous: float, expected: float) -> None:
    assert auto.passes_to_go(residual, previous, tolerance=1e-5) == pytest.approx(expected)


@pytest.mark.parametrize("step", ["static", "compiled"])
@pytest.mark.parametrize("family", ["starflow", "tarflow"])
def test_step_of_fixed_shapes_equals_the_eager_one(step: str, family: str) -> None:
    options = {"family": family, "grid_size": (2, 3), "num_kv_heads": 1}
    expected, _ = sample_with("cached", 1.5, **options)
    method = {"name": "cached", "step": step} | ({"compile_backend": "eager"} if step == "compiled" else {})
    tokens, statistics = sample_with(method, 1.5, **options)
    torch.testing.assert_close(tokens, expected)
    assert statistics.blocks[0].passes == (6 if family == "starflow" else 5)


def test_step_of_fixed_shapes_runs_under_autocast() -> None:
    """The cache is of the weights' type, keys come in the lower precision."""
    options = {"grid_size": (2, 3), "num_classes": None}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        eager, _ = sample_with({"name": "cached", "step": "eager"}, dtype=torch.float32, **options)
        static, _ = sample_with({"name": "cached", "step": "static"}, dtype=torch.float32, **options)
    exact, _ = sample_with("cached", **options)
    eager_error, static_error = ((tokens - exact).abs().max() for tokens in (eager, static))
    assert 0 < static_error < 4 * eager_error


def test_cuda_graph_without_cuda_is_refused() -> None:
    with pytest.raises(ConfigError, match="`cuda_graph` needs a flow on CUDA, found cpu"):
        sample_with({"name": "cached", "step": "cuda_graph"})


def test_auto_of_a_short_sequence_is_cached() -> None:
    _, statistics = sample_with("auto", grid_size=(2, 2))
    assert "too short" in statistics.blocks[0].reason


def test_guidance_of_an_unconditional_block_costs_nothing() -> None:
    rows: list[int] = []
    flow = build_flow(**LONG, layers_per_block=(1, 1))
    for block in flow.blocks:
        block.layers[0].register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    noise, condition = inputs_for(flow)
    flow.inverse(noise, **condition, guidance=1.0)
    assert rows == [6] * 37 + [3] * 36  # the deep block: a class token and 36 steps of both halves


def test_sampling_repeats_with_its_generator() -> None:
    flow = build_flow(num_classes=3)
    labels = torch.tensor([0, 2])
    first, again, other = (
        flow.sample(labels, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_sample_can_be_used_in_a_graph() -> None:
    flow = build_flow()
    flow.log_prob(flow.sample(num_samples=2)).sum().backward()
    assert flow.blocks[0].proj_in.weight.grad is not None


def test_number_of_samples_comes_from_what_is_given() -> None:
    flow = build_flow(num_classes=3)
    assert flow.sample(num_samples=2).shape == (2, 6, 3)
    assert flow.sample(noise=torch.zeros(4, 6, 3)).shape == (4, 6, 3)
    with pytest.raises(ShapeError, match="num_samples: found nothing"):
        flow.sample()
    with pytest.raises(ShapeError, match=r"num_samples: found \[1, 2\]"):
        flow.sample(torch.tensor([0, 1]), num_samples=1)
    with pytest.raises(ShapeError, match=r"num_samples: found \[2, 4\]"):
        flow.sample(noise=torch.zeros(4, 6, 3), num_samples=2)


def test_nan_noise_is_named() -> None:
    flow = build_flow()
    with pytest.raises(ShapeError, match="noise: NaN or infinite values in 3 of 3 rows"):
        flow.inverse(torch.full((3, 6, 3), float("nan")))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("cache", r"unknown `cache`. Did you mean `cached`\? Known: auto, cached, jacobi, naive"),
        ({"name": "jacobi", "tol": 1.0}, "tol"),
        ({"segment": 4}, "unknown `None`"),
        (["cached"], "a list of 1, but the flow has 3 blocks"),
    ],
)
def test_bad_method_is_refused(method: Any, message: str) -> None:
    flow = build_flow()
    with pytest.raises(ConfigError, match=message):
        flow.inverse(inputs_for(flow)[0], method=method)


def test_cache_is_in_the_type_of_the_products() -> None:
    """Of float32 it would be cast whole at every step under autocast, and xformers refuses mixed types."""
    weight = build_flow(torch.float32).deep_block.proj_in.weight
    assert product_dtype(weight) == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert product_dtype(weight) == torch.bfloat16
        assert product_dtype(weight.double()) == torch.float64  # autocast leaves it alone


class InOwnType(torch.nn.Module):
    """A norm of bfloat16 weights where its input has their type, outside autocast; the norm itself elsewhere."""

    def __init__(self, norm: torch.nn.Module) -> None:
        super().__init__()
        self.norm, self.rounded = norm, copy.deepcopy(norm).bfloat16()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if hidden.dtype != torch.bfloat16:
            return self.norm(hidden)
        with torch.autocast("cpu", enabled=False):
            return self.rounded(hidden)


def with_rounded_norms(module: torch.nn.Module) -> torch.nn.Module:
    """Replace the norms within `module`, which is changed, by what a model of bfloat16 weights has."""
    for name, child in list(module.named_children()):
        is_norm = isinstance(child, (torch.nn.LayerNorm, RmsNorm))
        setattr(module, name, InOwnType(child) if is_norm else with_rounded_norms(child))
    return module


@pytest.mark.parametrize("family", ["starflow", "tarflow"])
@pytest.mark.parametrize("conditioning", ["token", "add", "adaln"])
def test_weights_cast_once_give_what_autocast_gives(family: str, conditioning: str) -> None:
    flow = build_flow(torch.float32, family=family, num_classes=3, class_conditioning=conditioning)
    for name, parameter in flow.deep_block.named_parameters():
        if "norm" in name:  # so that their rounding shows
            torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
    noise, condition = inputs_for(flow)
    cast = cast_copy(flow.deep_block, torch.bfloat16)
    rounded = with_rounded_norms(copy.deepcopy(flow.deep_block))
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        ours, theirs, itself = (
            block(noise, condition["labels"], None).noise for block in (cast, rounded, flow.deep_block)
        )
    assert torch.equal(ours, theirs)
    if family == "tarflow":  # whose residual stream is float32, and so are all of its norms
        assert torch.equal(ours, itself)
    torch.testing.assert_close(ours, itself, atol=0.05, rtol=0.05)
