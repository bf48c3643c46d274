"""ml-starflow's weights: parity with its own numbers, and refusals of what does not map."""

from typing import Any

import pytest
import torch
from torch import Tensor

from simflow_plugin.contracts import NO_LABEL
from simflow_plugin.convert import from_ml_starflow, label_features
from simflow_plugin.errors import ConfigError, ShapeError, WeightsError
from simflow_plugin.flow import FlowConfig, TransformerFlow, patchify
from tests.convert.fixtures import read_numbers
from tests.convert.peers import TOLERANCE, largest

NAMES = ["ml_starflow_text", "ml_starflow_options", "ml_starflow_adaln"]
Case = tuple[dict[str, Any], dict[str, Tensor], TransformerFlow]


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest) -> Case:
    config, weights, numbers = read_numbers(request.param)
    return config, numbers, from_ml_starflow(weights, config)


def cut(config: dict[str, Any], images: Tensor) -> Tensor:
    return patchify(images, config["patch_size"])


def test_forward_agrees(case: Case) -> None:
    config, numbers, flow = case
    with torch.no_grad():
        output = flow(cut(config, numbers["inputs.images"]), condition=numbers["inputs.text"][:2])
    assert largest(output.noise, cut(config, numbers["outputs.noise"])) < TOLERANCE
    assert largest(output.logdet, numbers["outputs.logdet"]) < 1e-3  # a sum over all dimensions


@pytest.mark.parametrize("method", ["naive", "cached", "jacobi", "auto"])
@pytest.mark.parametrize(("guidance", "key"), [(0.0, "outputs.images"), (1.5, "outputs.images_guided")])
def test_reverse_agrees(case: Case, method: str, guidance: float, key: str) -> None:
    config, numbers, flow = case
    tokens = flow.inverse(
        cut(config, numbers["inputs.noise"]),
        condition=numbers["inputs.text"][:2],
        null_condition=numbers["inputs.text"][2:],
        guidance=guidance,
        method=method,
    )
    assert largest(tokens, cut(config, numbers[key])) < TOLERANCE


def test_jacobi_agrees_with_the_peers_jacobi() -> None:
    config, weights, numbers = read_numbers("ml_starflow_text")
    text = numbers["inputs.text"]
    tokens = from_ml_starflow(weights, config).inverse(
        cut(config, numbers["inputs.noise"]),
        condition=text[:2],
        null_condition=text[2:],
        guidance=1.5,
        method="jacobi",
    )
    assert largest(tokens, cut(config, numbers["outputs.images_jacobi"])) < TOLERANCE


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "ema.module."])
def test_wrapped_names_are_found(wrapper: str) -> None:
    config, weights, _ = read_numbers("ml_starflow_text")
    plain = from_ml_starflow(weights, config)
    wrapped = from_ml_starflow({wrapper + name: tensor for name, tensor in weights.items()}, config)
    assert all(map(torch.equal, plain.parameters(), wrapped.parameters()))


def test_averaged_weights_are_preferred() -> None:
    config, weights, _ = read_numbers("ml_starflow_text")
    both = {f"model.{name}": tensor + 1 for name, tensor in weights.items()}
    both |= {f"ema.{name}": tensor for name, tensor in weights.items()}
    averaged = from_ml_starflow(both, config)
    assert all(map(torch.equal, averaged.parameters(), from_ml_starflow(weights, config).parameters()))


def test_half_precision_becomes_float32_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    config, weights, _ = read_numbers("ml_starflow_text")
    flow = from_ml_starflow(weights, config)
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
    config, weights, _ = read_numbers("ml_starflow_text")
    with pytest.raises(ConfigError, match="head_dim" if name == "channels" else name):
        from_ml_starflow(weights, {**config, name: value})


def test_adaln_has_two_names_and_needs_its_weights() -> None:
    config, weights, _ = read_numbers("ml_starflow_adaln")
    renamed = {"use_adaln" if name == "adaln" else name: value for name, value in config.items()}
    assert from_ml_starflow(weights, renamed).config == from_ml_starflow(weights, config).config
    plain = {name: tensor for name, tensor in weights.items() if "adaLN" not in name}
    with pytest.raises(WeightsError, match=r"missing: .*adaln"):
        from_ml_starflow(plain, config)
    with pytest.raises(WeightsError, match="unexpected"):
        from_ml_starflow(weights, {**config, "adaln": 0})


def test_regularization_is_the_peers() -> None:
    config, weights, numbers = read_numbers("ml_starflow_adaln")
    ours = from_ml_starflow(weights, config)
    flow = TransformerFlow(FlowConfig(**{**ours.config.model_dump(), "intermediate_weight": 1e-4}))
    flow.load_state_dict(ours.state_dict())
    tokens = cut(config, numbers["inputs.images"])
    with torch.no_grad():
        output = flow(tokens, condition=numbers["inputs.text"][:2])
    torch.testing.assert_close(output.regularization, 1e-4 * numbers["outputs.regularization"][0])
    assert ours(tokens, condition=numbers["inputs.text"][:2]).regularization is None


def test_arguments_without_effect_are_ignored() -> None:
    config, weights, _ = read_numbers("ml_starflow_text")
    idle = {
        "use_checkpoint": 1,
        "use_checkpoint_mlp": 2,
        "top_block_channels": config["channels"],
        "temporal_causal": 0,
    }
    assert from_ml_starflow(weights, {**config, **idle}).config == from_ml_starflow(weights, config).config


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
    config, weights, _ = read_numbers("ml_starflow_text")
    with pytest.raises(WeightsError, match=message):
        from_ml_starflow(weights, {**config, **change})


def test_weights_of_another_network_are_refused() -> None:
    config, weights, _ = read_numbers("ml_starflow_text")
    with pytest.raises(WeightsError, match=r"blocks\.0\.proj_in\.weight"):
        from_ml_starflow({"encoder.conv_in.weight": torch.zeros(3)}, config)
    with pytest.raises(WeightsError, match="adaLN"):
        from_ml_starflow({**weights, "blocks.0.adaLN.weight": torch.zeros(3)}, config)


def test_labels_become_features_of_one_token() -> None:
    features = label_features(torch.tensor([2, NO_LABEL]), num_classes=3)
    assert torch.equal(features, torch.tensor([[[0.0, 0, 1, 0]], [[0, 0, 0, 1]]]))
    with pytest.raises(ShapeError, match="0 to 2"):
        label_features(torch.tensor([3]), num_classes=3)
