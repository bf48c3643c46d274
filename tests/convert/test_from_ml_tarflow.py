"""ml-tarflow's weights: parity with its own numbers, and refusals of what does not map."""

from typing import Any

import pytest
import torch
from torch import Tensor

from simflow_plugin.convert import from_ml_tarflow
from simflow_plugin.convert.from_ml_tarflow import channel_order
from simflow_plugin.errors import ConfigError, WeightsError
from simflow_plugin.flow import TransformerFlow, patchify, unpatchify
from tests.convert.fixtures import read_numbers
from tests.convert.peers import TOLERANCE, largest

NAMES = ["ml_tarflow_classes", "ml_tarflow_volume_preserving"]
GUIDED = [("outputs.images_guided", False), ("outputs.images_annealed", True)]


def to_ours(config: dict[str, Any], tokens: Tensor) -> Tensor:
    return tokens[:, :, channel_order(config["in_channels"], config["patch_size"])]


def to_images(config: dict[str, Any], tokens: Tensor) -> Tensor:
    side = config["img_size"] // config["patch_size"]
    return unpatchify(tokens, (side, side), config["patch_size"])


def read_flow(name: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor], TransformerFlow]:
    config, weights, numbers = read_numbers(name)
    return config, weights, numbers, from_ml_tarflow(weights, config)


@pytest.mark.parametrize("name", NAMES)
def test_forward_agrees(name: str) -> None:
    config, weights, numbers, flow = read_flow(name)
    with torch.no_grad():
        output = flow(patchify(numbers["inputs.images"], config["patch_size"]), numbers.get("inputs.labels"))
    var = weights["var"].float()  # one, unless nvp is false
    assert largest(output.noise, to_ours(config, numbers["outputs.noise"] / var.sqrt())) < TOLERANCE
    dims = output.noise[0].numel()
    assert largest(output.logdet / dims, numbers["outputs.logdet"] - 0.5 * var.log().mean()) < TOLERANCE


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["naive", "cached", "jacobi", "auto"])
def test_reverse_agrees(name: str, method: str) -> None:
    config, _, numbers, flow = read_flow(name)
    noise = to_ours(config, numbers["inputs.noise"])
    tokens = flow.inverse(noise, numbers.get("inputs.sampled_labels"), method=method)
    assert largest(to_images(config, tokens), numbers["outputs.images"]) < TOLERANCE


@pytest.mark.parametrize(("key", "annealed"), GUIDED)
@pytest.mark.parametrize("method", ["cached", "jacobi"])
def test_guided_reverse_agrees(key: str, annealed: bool, method: str) -> None:
    config, _, numbers, flow = read_flow("ml_tarflow_classes")
    tokens = flow.inverse(
        to_ours(config, numbers["inputs.noise"]),
        numbers["inputs.sampled_labels"],
        guidance=1.5,
        guidance_rule={"name": "linear", "annealed": annealed},
        method=method,
    )
    assert largest(to_images(config, tokens), numbers[key]) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "value"), [("head_dim", 32), ("channels", 96), ("patch_size", 3), ("num_blocks", "two")]
)
def test_unsupported_arguments_are_refused_by_name(name: str, value: Any) -> None:
    config, weights, _ = read_numbers("ml_tarflow_classes")
    with pytest.raises(ConfigError, match=name):
        from_ml_tarflow(weights, {**config, name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_blocks": 3}, "missing"),
        ({"num_classes": 6}, "another shape"),
        ({"num_classes": 0}, "unexpected"),
        ({"channels": 128}, "another shape"),
        ({"in_channels": 2}, "proj_in"),
        ({"nvp": False}, "proj_out"),
    ],
)
def test_weights_of_another_architecture_are_refused(change: dict[str, Any], message: str) -> None:
    config, weights, _ = read_numbers("ml_tarflow_classes")
    with pytest.raises(WeightsError, match=message):
        from_ml_tarflow(weights, {**config, **change})


@pytest.mark.parametrize(("nvp", "value"), [(True, 0.5), (False, 0.0)])
def test_impossible_priors_are_refused(nvp: bool, value: float) -> None:
    config, weights, _ = read_numbers(NAMES[0] if nvp else NAMES[1])
    with pytest.raises(WeightsError, match="var"):
        from_ml_tarflow({**weights, "var": torch.full_like(weights["var"], value)}, config)
