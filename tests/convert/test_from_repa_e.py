"""Parity with the REPA-E host's SiT: prediction, losses, batch norm, on its numbers and on its code."""

import importlib
import os
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from simflow_plugin.contracts import NO_LABEL, AlignmentContext, ModelContext
from simflow_plugin.convert.from_repa_e import RepaEArguments, describe_repa_e, from_repa_e
from simflow_plugin.errors import WeightsError
from simflow_plugin.models.sit import SiT, SiTOptions
from simflow_plugin.randomness import IndexedRandom

FIXTURE = Path(__file__).parents[1] / "fixtures" / "repa_e_sit.safetensors"
TOLERANCE = 1e-4
NUM_CLASSES = 5
ARGUMENTS = RepaEArguments(num_heads=4, encoder_depth=1)
OPTIONS = {
    "backbone": {"width": 32, "depth": 2, "num_heads": 4, "patch_size": 2},
    "normalizes_latents": True,
}
CONTEXT = ModelContext((4, 8, 8), NUM_CLASSES, AlignmentContext(feature_dim=12, layer=1, projector_dim=16))


@pytest.fixture(scope="module")
def numbers() -> dict[str, Tensor]:
    return load_file(FIXTURE)


def part(numbers: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in numbers.items() if key.startswith(prefix)}


def convert(host: dict[str, Tensor], interpolant: str = "linear", context: ModelContext = CONTEXT) -> SiT:
    return from_repa_e(host, SiTOptions.model_validate({**OPTIONS, "interpolant": interpolant}), context)


def our_labels(host_labels: Tensor) -> Tensor:
    return torch.where(host_labels == NUM_CLASSES, NO_LABEL, host_labels)


def test_prediction_equals_the_hosts(numbers: dict[str, Tensor]) -> None:
    inputs = part(numbers, "inputs.")
    with torch.no_grad():
        ours = convert(part(numbers, "host.")).predict(
            inputs["latents"], inputs["t"], our_labels(inputs["labels"])
        )
    torch.testing.assert_close(ours, numbers["outputs.prediction"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("term", ["denoising", "alignment"])
@pytest.mark.parametrize("interpolant", ["linear", "cosine"])
@pytest.mark.parametrize("mode", ["evaluation", "training"])
def test_losses_at_given_time_and_noise_equal_the_hosts(
    numbers: dict[str, Tensor], mode: str, interpolant: str, term: str
) -> None:
    inputs = part(numbers, "inputs.")
    model = convert(part(numbers, "host."), interpolant).train(mode == "training")
    ours = model.losses_at(
        inputs["latents"], our_labels(inputs["labels"]), inputs["features"], inputs["t"], inputs["noise"]
    )
    expected = numbers[f"outputs.{mode}.{interpolant}.{term}"].mean()
    torch.testing.assert_close(ours[term], expected, rtol=0, atol=TOLERANCE)


def test_running_statistics_move_as_the_hosts(numbers: dict[str, Tensor]) -> None:
    model = convert(part(numbers, "host.")).train()
    model.normalize(numbers["inputs.latents"])
    assert model.latent_norm is not None
    for name in ("running_mean", "running_var"):
        ours, host = getattr(model.latent_norm, name), numbers[f"outputs.training.{name}"]
        torch.testing.assert_close(ours, host, rtol=0, atol=1e-5)


def test_shapes_tell_options_and_context(numbers: dict[str, Tensor]) -> None:
    options, context = describe_repa_e(part(numbers, "host."), ARGUMENTS)
    assert context == CONTEXT
    assert options == SiTOptions.model_validate(OPTIONS)


def test_number_of_classes_of_a_host_without_label_dropout_is_stated(numbers: dict[str, Tensor]) -> None:
    """Its table has a row for each class and no more; nothing in the weights tells that from one with a null row."""
    host = part(numbers, "host.")
    _, context = describe_repa_e(host, ARGUMENTS.model_copy(update={"num_classes": NUM_CLASSES + 1}))
    assert context.num_classes == NUM_CLASSES + 1
    assert from_repa_e(host, SiTOptions.model_validate(OPTIONS), context).backbone.label_embed is not None
    with pytest.raises(
        WeightsError, match=rf"num_classes is 3, but the table of labels has {NUM_CLASSES + 1} rows"
    ):
        describe_repa_e(host, ARGUMENTS.model_copy(update={"num_classes": 3}))


def test_projector_and_batch_norm_can_be_left_out(numbers: dict[str, Tensor]) -> None:
    options = SiTOptions.model_validate({**OPTIONS, "normalizes_latents": False})
    model = from_repa_e(part(numbers, "host."), options, ModelContext((4, 8, 8), NUM_CLASSES))
    assert model.alignment is None
    assert model.latent_norm is None


def test_table_without_null_row_gets_a_zero_one(numbers: dict[str, Tensor]) -> None:
    host = part(numbers, "host.")
    host["y_embedder.embedding_table.weight"] = host["y_embedder.embedding_table.weight"][:-1]
    label_embed = convert(host).backbone.label_embed
    assert label_embed is not None
    assert label_embed.table.weight[-1].abs().max() == 0


def test_ddp_prefix_is_cut(numbers: dict[str, Tensor]) -> None:
    host = {f"module.{key}": value for key, value in part(numbers, "host.").items()}
    assert isinstance(convert(host), SiT)


def test_unknown_tensor_is_named(numbers: dict[str, Tensor]) -> None:
    with pytest.raises(WeightsError, match=r"1 of \d+ tensors are unknown: decoder\.conv_in\.weight"):
        convert({**part(numbers, "host."), "decoder.conv_in.weight": torch.zeros(1)})


def test_missing_tensor_is_named(numbers: dict[str, Tensor]) -> None:
    host = part(numbers, "host.")
    del host["final_layer.linear.bias"]
    with pytest.raises(WeightsError, match=r"of \d+ tensors 1 missing: backbone\.head\.linear\.bias"):
        convert(host)


def test_too_deep_a_host_is_named(numbers: dict[str, Tensor]) -> None:
    host = part(numbers, "host.")
    host["blocks.2.attn.qkv.weight"] = host["blocks.1.attn.qkv.weight"]
    with pytest.raises(WeightsError, match=r"1 unexpected: backbone\.layers\.2\.attention\.qkv\.weight"):
        convert(host)


def test_wrong_shape_is_named(numbers: dict[str, Tensor]) -> None:
    host = part(numbers, "host.")
    host["blocks.0.mlp.fc1.bias"] = torch.zeros(64)
    with pytest.raises(WeightsError, match=r"1 of another shape: .* \(64,\) instead of \(128,\)"):
        convert(host)


def test_other_positions_are_refused(numbers: dict[str, Tensor]) -> None:
    host = part(numbers, "host.")
    host["pos_embed"] = host["pos_embed"] + 0.01
    with pytest.raises(WeightsError, match="is not the sine-cosine table"):
        convert(host)


needs_checkout = pytest.mark.skipif(
    "REPA_E_DIR" not in os.environ, reason="set REPA_E_DIR to a checkout of REPA-E at 3ad8046"
)
both_interpolants = pytest.mark.parametrize("interpolant", ["linear", "cosine"])
PathType = Literal["linear", "cosine"]


def host_module(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(os.environ["REPA_E_DIR"])
    for loaded in [loaded for loaded in sys.modules if loaded.split(".")[0] in ("models", "samplers")]:
        monkeypatch.delitem(sys.modules, loaded)
    return importlib.import_module(name)


def randomize(host: torch.nn.Module) -> Any:
    with torch.no_grad():
        for name, parameter in host.named_parameters():
            if name != "pos_embed":
                parameter.normal_(std=0.05)
    return host.eval()


@needs_checkout
@both_interpolants
def test_random_weights_of_a_real_checkout_agree(
    interpolant: PathType, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"input_size": 16, "num_classes": 10, "z_dims": [24], "projector_dim": 32, "encoder_depth": 4}
    host_class = host_module("models.sit", monkeypatch).SiT_B_2
    host = randomize(host_class(path_type=interpolant, qk_norm=False, **sizes))
    options, context = describe_repa_e(
        host.state_dict(), RepaEArguments(path_type=interpolant, encoder_depth=4)
    )
    ours = from_repa_e(host.state_dict(), options, context)
    latents, noise = torch.randn(2, 3, 4, 16, 16)
    t, labels, features = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 5, 9]), torch.randn(3, 64, 24)
    settings = {"weighting": "uniform", "path_type": interpolant, "prediction": "v", "align_only": False}
    with torch.no_grad():
        theirs = host(latents, labels, [features], settings, time_input=t.view(-1, 1, 1, 1), noises=noise)
        terms = ours.losses_at(latents, labels, features, t, noise)
        prediction = ours.predict(latents, t, labels)
        expected = host.inference(latents, t, labels)
    torch.testing.assert_close(prediction, expected, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(terms["denoising"], theirs["denoising_loss"].mean(), rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(terms["alignment"], theirs["proj_loss"], rtol=0, atol=TOLERANCE)


@needs_checkout
@both_interpolants
@pytest.mark.parametrize("method", ["euler", "heun", "euler_maruyama"])
def test_samples_of_a_real_checkout_agree(
    method: str, interpolant: PathType, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"input_size": 8, "hidden_size": 32, "decoder_hidden_size": 32, "depth": 2, "num_heads": 4}
    host_class = host_module("models.sit", monkeypatch).SiT
    # 1000 classes, because the host's samplers take label 1000 for none.
    host = randomize(host_class(path_type=interpolant, qk_norm=False, num_classes=1000, z_dims=[], **sizes))
    # Heun: the host lets the start of a step decide for both of its evaluations, so guide everywhere.
    low, high = (0.0, 1.0) if method == "heun" else (0.2, 0.75)
    rule = {"name": "classifier_free", "interval": (low, high)}
    sampling = {"method": method, "num_steps": 9, "guidance_rule": rule}
    options, context = describe_repa_e(host.state_dict(), RepaEArguments(num_heads=4, path_type=interpolant))
    options = SiTOptions.model_validate({**options.model_dump(), "sampling": sampling})
    ours = from_repa_e(host.state_dict(), options, context)
    random, labels, shape = IndexedRandom(0, (0, 1, 2)), torch.tensor([0, 500, 999]), (3, 4, 8, 8)
    steps = iter(range(9))
    with monkeypatch.context() as patched:
        patched.setattr(torch, "randn_like", lambda x: random.normal(f"sde/{next(steps)}", x.shape).double())
        samplers = host_module("samplers", monkeypatch)
        draw = samplers.euler_maruyama_sampler if method == "euler_maruyama" else samplers.euler_sampler
        theirs = draw(
            host,
            random.normal("latent", shape),
            labels,
            num_steps=9,
            heun=method == "heun",
            cfg_scale=1 + 1.5,
            guidance_low=low,
            guidance_high=high,
            path_type=interpolant,
        )
    samples = ours.sample(labels, shape, 1.5, random)
    torch.testing.assert_close(samples, ours.denormalize(theirs.float()), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_with_the_tolerance_of_its_type(
    numbers: dict[str, Tensor], dtype: torch.dtype
) -> None:
    host = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in part(numbers, "host.").items()
    }
    host = {name.replace("blocks.", "blocks._orig_mod."): tensor for name, tensor in host.items()}
    converted = convert(host).state_dict()
    key = "backbone.patch_embed.weight"
    torch.testing.assert_close(converted[key], host["x_embedder.proj.weight"].float(), rtol=0, atol=0)
    host["pos_embed"] = host["pos_embed"] + 4 * torch.finfo(dtype).eps
    with pytest.raises(WeightsError, match="pos_embed"):
        convert(host)


def test_positions_that_are_not_finite_are_refused(numbers: dict[str, Tensor]) -> None:
    host = part(numbers, "host.")
    host["pos_embed"] = host["pos_embed"].clone()
    host["pos_embed"][0, 0, 0] = float("nan")
    with pytest.raises(WeightsError, match="pos_embed"):
        convert(host)
