"""The log-determinant, the inverse and the samplers are exact for every combination of options."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simflow_plugin.flow import Jacobi
from tests.flow.builders import CHOICES, build_flow, inputs_for
from tests.flow.teacher_forcing import largest_step_error

EXAMPLES = settings(max_examples=25, deadline=None, derandomize=True)


@st.composite
def option_sets(draw: st.DrawFn) -> dict[str, Any]:
    """Any combination of the options of an architecture, with labels, features or neither."""
    options: dict[str, Any] = draw(st.fixed_dictionaries(CHOICES)) | {
        "conditional_blocks": draw(st.sampled_from(["deep", "all"])),
        "mlp_ratio": draw(st.sampled_from([4.0, 1.3])),
        "activation_checkpointing": draw(st.booleans()),
        "num_kv_heads": draw(st.sampled_from([None, 1])),
        "layers_per_block": draw(st.sampled_from([(1,), (1, 2), (1, 1, 1)])),
        "grid_size": draw(st.sampled_from([(1, 1), (2, 2), (1, 5), (3, 2)])),
        "token_dim": draw(st.integers(1, 3)),
    }
    if options["positions"] == "rope":
        options |= {
            "rope_side": draw(st.sampled_from([None, 7.5])),
            "rope_theta": draw(st.sampled_from([1e4, 50.0])),
        }
    if options["scale"] != "unit" and draw(st.booleans()):
        options |= {"soft_clip": 2.0, "soft_clips_shift": draw(st.booleans())}
    condition = draw(st.sampled_from(["none", "labels", "features"]))
    if condition == "labels":
        options |= {
            "num_classes": 2,
            "class_conditioning": draw(st.sampled_from(["token", "add", "adaln"])),
            "null_label": draw(st.sampled_from(["learned", "mean"])),
        }
    if condition == "features":
        options |= {
            "condition_dim": 3,
            "condition_frequencies": draw(st.sampled_from([0, 2])),
            "condition_length": draw(st.sampled_from([None, 2])),
        }
        if draw(st.booleans()):
            options |= {"class_conditioning": "adaln", "condition_length": 1}
    if options.get("class_conditioning") == "adaln":
        options["adaln_gates"] = draw(st.booleans())
        if options["conditional_blocks"] == "all":
            options["norm"] = "layer"
    return options


def flow_and_inputs(options: dict[str, Any], dtype: torch.dtype, rows: int = 3) -> Any:
    flow = build_flow(dtype, **options)
    return flow, *inputs_for(flow, rows)


@EXAMPLES
@given(option_sets())
def test_logdet_matches_jacobian(options: dict[str, Any]) -> None:
    flow, tokens, condition = flow_and_inputs(options, torch.float64, rows=2)
    one = {name: value[:1] for name, value in condition.items()}
    size = tokens[0].numel()

    def noise_of(row: torch.Tensor) -> torch.Tensor:
        return flow(row[None], **one).noise.flatten()

    jacobian = torch.autograd.functional.jacobian(noise_of, tokens[0]).reshape(size, size)
    expected = torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(flow(tokens, **condition).logdet[0], expected, rtol=0, atol=1e-10)


@EXAMPLES
@given(option_sets())
def test_inverse_recovers_tokens(options: dict[str, Any]) -> None:
    flow, tokens, condition = flow_and_inputs(options, torch.float64)
    noise = flow(tokens, **condition).noise
    torch.testing.assert_close(flow.inverse(noise, **condition), tokens, rtol=0, atol=1e-10)


def guided(options: dict[str, Any], dtype: torch.dtype, guidance: float) -> Any:
    flow, noise, condition = flow_and_inputs(options, dtype)
    if condition:
        condition["guidance"] = guidance
    if "condition" in condition:
        condition["null_condition"] = torch.zeros_like(condition["condition"][:1])
    return flow, noise, condition


METHODS = ("naive", "cached", Jacobi(segment=3, tolerance=0.0, max_iterations=3))


@EXAMPLES
@given(option_sets(), st.sampled_from([0.0, 1.5]))
def test_samplers_agree(options: dict[str, Any], guidance: float) -> None:
    flow, noise, condition = guided(options, torch.float64, guidance)
    naive, *others = (flow.inverse(noise, **condition, method=method) for method in METHODS)
    # Rounding in a token scales with the tokens after it, which scale `exp` makes large.
    size = naive.abs().max().clamp(min=1)
    for sampled in others:
        torch.testing.assert_close(sampled / size, naive / size, rtol=0, atol=1e-10)


@EXAMPLES
@given(option_sets(), st.sampled_from([0.0, 1.5]))
def test_steps_of_all_samplers_in_float32_are_those_of_float64(
    options: dict[str, Any], guidance: float
) -> None:
    """Float32 runs packed weights, and other products; the token of every step is right given those before it."""
    flow, noise, condition = guided(options, torch.float32, guidance)
    for method in METHODS:
        assert largest_step_error(flow, noise, **condition, method=method) < 2e-5
