"""The compiled decode step gives the numbers of the module, whatever the options; where it cannot run, torch does."""

from __future__ import annotations

import platform
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simflow_plugin.errors import ConfigError
from simflow_plugin.flow.kernels import compiler as compilers
from simflow_plugin.flow.kernels import decoder, library
from simflow_plugin.flow.sampling import decode_steps
from tests.flow.builders import CHOICES, build_flow, inputs_for
from tests.flow.teacher_forcing import largest_step_error

NATIVE = {"name": "cached", "step": "native"}
EAGER = {"name": "cached", "step": "eager"}
# A width and a head size that fill no vector, several panels, and more than one row unit with guidance.
SIZE = {"width": 40, "head_dim": 20, "mlp_ratio": 2.3, "layers_per_block": (1, 2)}

needs_compiler = pytest.mark.skipif(
    library.find_library() is None, reason="no C++ compiler, or the kernel cannot be built"
)


ROUNDING = 2e-5
"""Of one step in float32, relative to max(1, its tokens); a wrong option is off by more than 1e-3."""


def flow_and_inputs(guidance: float, rows: int, **options: Any) -> tuple[Any, torch.Tensor, dict[str, Any]]:
    flow = build_flow(torch.float32, **(SIZE | options))
    noise, condition = inputs_for(flow, rows=rows)
    if guidance and "condition" in condition:
        condition["null_condition"] = -condition["condition"]
    return flow, noise, {**condition, "guidance": guidance}


def sample(method: Any, guidance: float = 0.0, rows: int = 5, **options: Any) -> torch.Tensor:
    flow, noise, arguments = flow_and_inputs(guidance, rows, **options)
    return flow.inverse(noise, **arguments, method=method)


def step_error(method: Any, guidance: float = 0.0, rows: int = 5, **options: Any) -> float:
    """The largest error of a step against float64, given the tokens that this inversion itself emitted."""
    flow, noise, arguments = flow_and_inputs(guidance, rows, **options)
    return largest_step_error(flow, noise, **arguments, method=method)


@needs_compiler
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    options=st.fixed_dictionaries(CHOICES),
    class_conditioning=st.sampled_from(["token", "add"]),
    condition=st.sampled_from([{}, {"num_classes": 3}, {"condition_dim": 6, "condition_frequencies": 2}]),
    heads=st.sampled_from([{}, {"num_heads": 4, "num_kv_heads": 2}, {"num_heads": 3, "num_kv_heads": 1}]),
    rows=st.sampled_from([1, 3, 8, 9]),
    is_guided=st.booleans(),
)
def test_every_option_gives_the_numbers_of_torch(
    options: dict[str, Any],
    class_conditioning: str,
    condition: dict[str, Any],
    heads: dict[str, Any],
    rows: int,
    is_guided: bool,
) -> None:
    options |= {"class_conditioning": class_conditioning, **condition, **heads}
    guidance = 1.3 if is_guided and condition else 0.0
    assert step_error(NATIVE, guidance, rows, **options) < ROUNDING


@needs_compiler
def test_option_that_the_kernel_gets_wrong_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle is the module in float64: a kernel that runs other weights is far outside the rounding."""
    packed = decoder.Decoder.__call__

    def wrong(self: Any, *of: Any) -> torch.Tensor:
        return 1.001 * packed(self, *of)

    monkeypatch.setattr(decoder.Decoder, "__call__", wrong)
    assert step_error(NATIVE, 1.3, num_classes=3) > 10 * ROUNDING


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86 instruction sets")
@pytest.mark.parametrize("instructions", ["x86-64", "x86-64-v3"])
def test_processors_with_shorter_vectors_get_the_same(
    instructions: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    flags = tuple(f"-march={instructions}" if flag.startswith("-march") else flag for flag in compilers.FLAGS)
    monkeypatch.setattr(compilers, "FLAGS", flags)
    built = library.find_library.__wrapped__()
    assert built is not None
    assert built.panel < 16
    monkeypatch.setattr(decoder, "find_library", lambda: built)
    assert step_error(NATIVE, num_classes=3) < ROUNDING


@needs_compiler
def test_number_of_threads_changes_no_bit() -> None:
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(sample(NATIVE, 1.0, num_classes=3, class_conditioning="add"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@needs_compiler
@pytest.mark.parametrize("exponent", [30.0, -30.0])
def test_large_activations_saturate_as_in_torch(exponent: float) -> None:
    flow = build_flow(torch.float32, **SIZE, mlp="swiglu", gated_attention=True)
    with torch.no_grad():
        for block in flow.blocks:
            for layer in block.layers:
                layer.mlp.up.bias.add_(exponent)
                layer.attention.qkv.bias.add_(exponent)
    noise, _ = inputs_for(flow)
    assert flow.inverse(noise, method=NATIVE).isfinite().all()
    # Activations of this size cancel in the output projection: torch's own step is the measure.
    eager = largest_step_error(flow, noise, method=EAGER)
    assert largest_step_error(flow, noise, method=NATIVE) < 10 * eager + ROUNDING


@needs_compiler
def test_nan_in_a_weight_is_not_hidden() -> None:
    flow = build_flow(torch.float32, **SIZE)
    with torch.no_grad():
        flow.deep_block.layers[0].mlp.down.bias[3] = float("nan")
    noise, _ = inputs_for(flow)
    assert flow.inverse(noise, method=NATIVE).isnan().any(dim=-1).all()


@needs_compiler
def test_auto_step_is_the_kernel_where_it_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[str] = []
    find_kind = decode_steps.step_kind
    monkeypatch.setattr(decode_steps, "step_kind", lambda *of: kinds.append(find_kind(*of)) or kinds[-1])
    sample("cached")
    assert kinds == ["native", "native"]
    flow = build_flow(torch.float64, **SIZE)
    flow.inverse(inputs_for(flow)[0])
    assert kinds[2:] == ["eager", "eager"]


@needs_compiler
@pytest.mark.parametrize(
    "change", ["float64", "hook", "replaced module", "attention", "gelu", "rows", "autocast"]
)
def test_native_that_cannot_run_says_why(change: str) -> None:
    flow = build_flow(torch.float64 if change == "float64" else torch.float32, **SIZE)
    layer = flow.deep_block.layers[0]
    noise, _ = inputs_for(flow, rows=decoder.MAX_ROWS + 1 if change == "rows" else 2)
    said = {
        "float64": "float64",
        "hook": r"layers\.0\.mlp",
        "replaced module": r"layers\.0\.mlp\.down .*Doubled",
        "attention": "found builtin_function",
        "gelu": "approximate=tanh",
        "rows": f"up to {decoder.MAX_ROWS} rows, found {decoder.MAX_ROWS + 1}",
        "autocast": "autocast",
    }[change]

    class Doubled(torch.nn.Linear):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(hidden)

    if change == "hook":
        layer.mlp.register_forward_hook(lambda module, inputs, output: 2 * output)
    if change == "replaced module":
        layer.mlp.down = Doubled(layer.mlp.down.in_features, layer.mlp.down.out_features)
    if change == "gelu":
        layer.mlp.activation = torch.nn.GELU(approximate="tanh")
    if change == "attention":
        layer.attention.backend = torch.nn.functional.scaled_dot_product_attention
    with torch.autocast("cpu", enabled=change == "autocast"), pytest.raises(ConfigError, match=said):
        flow.inverse(noise, method=NATIVE)


@pytest.mark.parametrize("compiler", ["false", "missing"])
def test_without_a_compiler_torch_samples(
    compiler: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(library, "find_compiler", lambda: None if compiler == "missing" else ["false"])
    with caplog.at_level("INFO"):
        missing = library.find_library.__wrapped__()
    assert missing is None
    assert [record.message for record in caplog.records if "uses torch alone" in record.message]
    assert not list(tmp_path.rglob("*.so"))
    monkeypatch.setattr(decoder, "find_library", lambda: None)
    assert torch.equal(sample("cached"), sample(EAGER))
    with pytest.raises(ConfigError, match="use `auto` or `eager`"):
        sample(NATIVE)


@needs_compiler
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_default_type_of_the_process_changes_nothing(default: torch.dtype) -> None:
    flow = build_flow(torch.float32, **SIZE)
    noise, _ = inputs_for(flow)
    expected = flow.inverse(noise, method=NATIVE)
    torch.set_default_dtype(default)
    try:
        assert torch.equal(flow.inverse(noise, method=NATIVE), expected)
    finally:
        torch.set_default_dtype(torch.float32)
