"""ml-tarflow's weights: parity with its own numbers, and refusals of what does not map."""

from typing import Any

import pytest
import torch
from torch import Tensor

from simflow_plugin.convert import from_ml_tarflow
from simflow_plugin.convert.from_ml_tarflow import channel_order
from simflow_plugin.errors import ConfigError, WeightsError
from simflow_plugin.flow import unpatchify
from tests.convert.peers import TOLERANCE, Case, largest, read_parts

NAMES = ["ml_tarflow_classes", "ml_tarflow_volume_preserving"]
CONFIG, CLASSES = read_parts(NAMES[0])
both_fixtures = pytest.mark.parametrize("name", NAMES)


class TarflowCase(Case):
    def __init__(self, name: str) -> None:
        super().__init__(name, from_ml_tarflow)

    def to_ours(self, tokens: Tensor) -> Tensor:
        return tokens[:, :, channel_order(self.config["in_channels"], self.patch_size)]

    def images(self, **options: Any) -> Tensor:
        side = self.config["img_size"] // self.patch_size
        tokens = self.flow.inverse(
            self.to_ours(self.inputs["noise"]), self.inputs.get("sampled_labels"), **options
        )
        return unpatchify(tokens, (side, side), self.patch_size)


@both_fixtures
def test_forward_agrees(name: str) -> None:
    case = TarflowCase(name)
    with torch.no_grad():
        output = case.flow(case.cut(case.inputs["images"]), case.inputs.get("labels"))
    var = case.weights["var"].float()  # one, unless nvp is false
    assert largest(output.noise, case.to_ours(case.outputs["noise"] / var.sqrt())) < TOLERANCE
    dims = output.noise[0].numel()
    assert largest(output.logdet / dims, case.outputs["logdet"] - 0.5 * var.log().mean()) < TOLERANCE


@both_fixtures
@pytest.mark.parametrize("method", ["naive", "cached", "jacobi", "auto"])
def test_reverse_agrees(name: str, method: str) -> None:
    case = TarflowCase(name)
    assert largest(case.images(method=method), case.outputs["images"]) < TOLERANCE


@pytest.mark.parametrize(("key", "annealed"), [("images_guided", False), ("images_annealed", True)])
@pytest.mark.parametrize("method", ["cached", "jacobi"])
def test_guided_reverse_agrees(key: str, annealed: bool, method: str) -> None:
    case, rule = TarflowCase(NAMES[0]), {"name": "linear", "annealed": annealed}
    images = case.images(guidance=1.5, guidance_rule=rule, method=method)
    assert largest(images, case.outputs[key]) < TOLERANCE


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"head_dim": 32}, ConfigError, "head_dim"),
        ({"channels": 96}, ConfigError, "channels"),
        ({"patch_size": 3}, ConfigError, "patch_size"),
        ({"num_blocks": "two"}, ConfigError, "num_blocks"),
        ({"num_blocks": 3}, WeightsError, "missing"),
        ({"num_classes": 6}, WeightsError, "another shape"),
        ({"num_classes": 0}, WeightsError, "unexpected"),
        ({"channels": 128}, WeightsError, "another shape"),
        ({"in_channels": 2}, WeightsError, "proj_in"),
        ({"nvp": False}, WeightsError, "proj_out"),
    ],
)
def test_unsupported_arguments_and_weights_of_another_architecture_are_refused(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        from_ml_tarflow(CLASSES["peer"], {**CONFIG, **change})


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_numbers_of_which_floats_are_made_are_floats(dtype: torch.dtype) -> None:
    case = TarflowCase(NAMES[1])
    with pytest.raises(WeightsError, match=rf"`var` of {dtype} holds no weights"):
        from_ml_tarflow(
            {**case.weights, "var": torch.ones_like(case.weights["var"], dtype=dtype)}, case.config
        )


@pytest.mark.parametrize(("name", "value"), [(NAMES[0], 0.5), (NAMES[1], 0.0)])
def test_impossible_priors_are_refused(name: str, value: float) -> None:
    case = TarflowCase(name)
    with pytest.raises(WeightsError, match="var"):
        from_ml_tarflow({**case.weights, "var": torch.full_like(case.weights["var"], value)}, case.config)
