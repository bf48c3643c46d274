"""ml-starflow's weights: parity with its own numbers, and refusals of what does not map."""

from typing import Any

import pytest
import torch
from torch import Tensor

from simflow_plugin.contracts import NO_LABEL
from simflow_plugin.convert import from_ml_starflow, label_features
from simflow_plugin.errors import ConfigError, ShapeError, WeightsError
from simflow_plugin.flow import FlowConfig, TransformerFlow
from tests.convert.peers import TOLERANCE, Case, largest, read_parts

CONFIG, TEXT = read_parts("ml_starflow_text")
WEIGHTS = TEXT["peer"]


class StarflowCase(Case):
    def __init__(self, name: str) -> None:
        super().__init__(name, from_ml_starflow)

    def inverse(self, guidance: float, method: str) -> Tensor:
        noise, text = self.cut(self.inputs["noise"]), self.inputs["text"]
        return self.flow.inverse(
            noise, condition=text[:2], null_condition=text[2:], guidance=guidance, method=method
        )


@pytest.fixture(scope="module", params=["ml_starflow_text", "ml_starflow_options", "ml_starflow_adaln"])
def case(request: pytest.FixtureRequest) -> StarflowCase:
    return StarflowCase(request.param)


def test_forward_agrees(case: StarflowCase) -> None:
    with torch.no_grad():
        output = case.flow(case.cut(case.inputs["images"]), condition=case.inputs["text"][:2])
    assert largest(output.noise, case.cut(case.outputs["noise"])) < TOLERANCE
    assert largest(output.logdet, case.outputs["logdet"]) < 1e-3  # a sum over all dimensions


@pytest.mark.parametrize("method", ["naive", "cached", "jacobi", "auto"])
@pytest.mark.parametrize(("guidance", "key"), [(0.0, "images"), (1.5, "images_guided")])
def test_reverse_agrees(case: StarflowCase, method: str, guidance: float, key: str) -> None:
    assert largest(case.inverse(guidance, method), case.cut(case.outputs[key])) < TOLERANCE


def test_jacobi_agrees_with_the_peers_jacobi() -> None:
    case = StarflowCase("ml_starflow_text")
    assert largest(case.inverse(1.5, "jacobi"), case.cut(case.outputs["images_jacobi"])) < TOLERANCE


def under(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in weights.items()}


@pytest.mark.parametrize(
    "weights",
    [
        *(
            under(prefix, WEIGHTS)
            for prefix in ("module.", "_orig_mod.", "model.", "module._orig_mod.", "ema.module.")
        ),
        under("model.", {name: tensor + 1 for name, tensor in WEIGHTS.items()}) | under("ema.", WEIGHTS),
    ],
    ids=["ddp", "compiled", "nested", "ddp compiled", "ema ddp", "averaged beside raw"],
)
def test_weights_are_found_in_wrappers_and_averaged_ones_are_preferred(weights: dict[str, Tensor]) -> None:
    plain, found = (from_ml_starflow(tensors, CONFIG) for tensors in (WEIGHTS, weights))
    assert all(map(torch.equal, plain.parameters(), found.parameters()))


def test_half_precision_becomes_float32_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    flow = from_ml_starflow(WEIGHTS, CONFIG)
    assert {parameter.dtype for parameter in flow.parameters()} == {torch.float32}
    assert "float16" in caplog.text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_pretrained_lm", "gemma3_1b"),
        ("learnable_self_denoiser", 1),
        ("temporal_causal", 2),
        ("shallow_block_local", 1),
        ("local_attn_window", 3),
        ("top_block_channels", 96),
        ("num_classes", 10),
        ("rope", 0),
        ("norm_type", "none"),
        ("layers_per_block", [1, 0, 2]),
        ("layers_per_block", [1, 2]),
        ("txt_dim", 0),
        ("adaln", 1),
        ("soft_clipp", 4),
        ("channels", 50),
    ],
)
def test_unsupported_arguments_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match="head_dim" if name == "channels" else name):
        from_ml_starflow(WEIGHTS, {**CONFIG, name: value})


def test_adaln_has_two_names_and_needs_its_weights() -> None:
    config, parts = read_parts("ml_starflow_adaln")
    weights = parts["peer"]
    renamed = {"use_adaln" if name == "adaln" else name: value for name, value in config.items()}
    assert from_ml_starflow(weights, renamed).config == from_ml_starflow(weights, config).config
    plain = {name: tensor for name, tensor in weights.items() if "adaLN" not in name}
    with pytest.raises(WeightsError, match=r"missing: .*adaln"):
        from_ml_starflow(plain, config)
    with pytest.raises(WeightsError, match="unexpected"):
        from_ml_starflow(weights, {**config, "adaln": 0})


def test_regularization_is_the_peers() -> None:
    case = StarflowCase("ml_starflow_adaln")
    flow = TransformerFlow(FlowConfig(**{**case.flow.config.model_dump(), "intermediate_weight": 1e-4}))
    flow.load_state_dict(case.flow.state_dict())
    tokens, text = case.cut(case.inputs["images"]), case.inputs["text"][:2]
    with torch.no_grad():
        output = flow(tokens, condition=text)
    torch.testing.assert_close(output.regularization, 1e-4 * case.outputs["regularization"][0])
    assert case.flow(tokens, condition=text).regularization is None


def test_arguments_without_effect_are_ignored() -> None:
    idle = {"use_checkpoint": 1, "use_checkpoint_mlp": 2, "temporal_causal": 0}
    idle["top_block_channels"] = CONFIG["channels"]
    assert from_ml_starflow(WEIGHTS, {**CONFIG, **idle}).config == from_ml_starflow(WEIGHTS, CONFIG).config


def test_training_configuration_is_told_from_arguments() -> None:
    with pytest.raises(ConfigError, match="in_channels"):
        from_ml_starflow({}, {"arguments": [{"channel_size": 4}]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers_per_block": [1, 1, 1]}, "unexpected"),
        ({"layers_per_block": [1, 1, 3]}, "missing"),
        ({"in_channels": 4}, "another shape"),
        ({"use_final_norm": 0}, "final_norm"),
        ({"use_qk_norm": 1}, "query_scale"),
        ({"use_swiglu": 1}, "another shape"),
        ({"num_heads": 4}, "qkv"),
    ],
)
def test_weights_of_another_architecture_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        from_ml_starflow(WEIGHTS, {**CONFIG, **change})


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"encoder.conv_in.weight": torch.zeros(3)}, r"blocks\.0\.proj_in\.weight"),
        ({**WEIGHTS, "blocks.0.adaLN.weight": torch.zeros(3)}, r"blocks\.0\.adaLN\.weight"),
        ({**WEIGHTS, "blocks.0.proj_in.bias": torch.full((48,), torch.inf)}, "not finite"),
        ({**WEIGHTS, "blocks.0.proj_in.bias": torch.zeros(48, dtype=torch.int8)}, "int8 instead of float32"),
    ],
    ids=["another network", "unknown tensor", "diverged", "quantised"],
)
def test_weights_of_another_network_are_refused(weights: dict[str, Tensor], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        from_ml_starflow(weights, CONFIG)


def test_labels_become_features_of_one_token() -> None:
    features = label_features(torch.tensor([2, NO_LABEL]), num_classes=3)
    assert torch.equal(features, torch.tensor([[[0.0, 0, 1, 0]], [[0, 0, 0, 1]]]))
    with pytest.raises(ShapeError, match="0 to 2"):
        label_features(torch.tensor([3]), num_classes=3)
