"""Parity with the REPA-E host's SiT: prediction, losses, batch norm, on its numbers and on its code."""

from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from simflow_plugin.contracts import NO_LABEL, AlignmentContext, ModelContext
from simflow_plugin.convert.from_repa_e import RepaEArguments, describe_repa_e, from_repa_e
from simflow_plugin.errors import WeightsError
from simflow_plugin.models.sit import SiT, SiTOptions
from simflow_plugin.randomness import IndexedRandom
from tests.convert.peers import TOLERANCE, import_from, read_parts

NUM_CLASSES = 5
ARGUMENTS = RepaEArguments(num_heads=4, encoder_depth=1)
OPTIONS = {
    "backbone": {"width": 32, "depth": 2, "num_heads": 4, "patch_size": 2},
    "normalizes_latents": True,
}
CONTEXT = ModelContext((4, 8, 8), NUM_CLASSES, AlignmentContext(feature_dim=12, layer=1, projector_dim=16))
NUMBERS = read_parts("repa_e_sit")[1]
HOST, INPUTS, OUTPUTS = NUMBERS["host"], NUMBERS["inputs"], NUMBERS["outputs"]
LABELS = torch.where(INPUTS["labels"] == NUM_CLASSES, NO_LABEL, INPUTS["labels"])
both_interpolants = pytest.mark.parametrize("interpolant", ["linear", "cosine"])
PathType = Literal["linear", "cosine"]


def convert(host: dict[str, Tensor] = HOST, context: ModelContext = CONTEXT, **options: Any) -> SiT:
    return from_repa_e(host, SiTOptions.model_validate({**OPTIONS, **options}), context)


def test_prediction_equals_the_hosts() -> None:
    with torch.no_grad():
        ours = convert().predict(INPUTS["latents"], INPUTS["t"], LABELS)
    torch.testing.assert_close(ours, OUTPUTS["prediction"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("term", ["denoising", "alignment"])
@both_interpolants
@pytest.mark.parametrize("mode", ["evaluation", "training"])
def test_losses_at_given_time_and_noise_equal_the_hosts(mode: str, interpolant: str, term: str) -> None:
    model = convert(interpolant=interpolant).train(mode == "training")
    ours = model.losses_at(INPUTS["latents"], LABELS, INPUTS["features"], INPUTS["t"], INPUTS["noise"])
    expected = OUTPUTS[f"{mode}.{interpolant}.{term}"].mean()
    torch.testing.assert_close(ours[term], expected, rtol=0, atol=TOLERANCE)


def test_running_statistics_move_as_the_hosts() -> None:
    model = convert().train()
    model.normalize(INPUTS["latents"])
    for name in ("running_mean", "running_var"):
        moved = model.state_dict()[f"latent_norm.{name}"]
        torch.testing.assert_close(moved, OUTPUTS[f"training.{name}"], rtol=0, atol=1e-5)


def test_shapes_tell_options_and_context() -> None:
    assert describe_repa_e(HOST, ARGUMENTS) == (SiTOptions.model_validate(OPTIONS), CONTEXT)


def test_number_of_classes_of_a_host_without_label_dropout_is_stated() -> None:
    """Its table has a row for each class and no more; nothing in the weights tells that from one with a null row."""
    stated = ARGUMENTS.model_copy(update={"num_classes": NUM_CLASSES + 1})
    _, context = describe_repa_e(HOST, stated)
    assert context.num_classes == NUM_CLASSES + 1
    assert convert(context=context).backbone.label_embed is not None
    with pytest.raises(
        WeightsError, match=rf"num_classes is 3, but the table of labels has {NUM_CLASSES + 1} rows"
    ):
        describe_repa_e(HOST, stated.model_copy(update={"num_classes": 3}))


def test_projector_and_batch_norm_can_be_left_out() -> None:
    model = convert(context=ModelContext((4, 8, 8), NUM_CLASSES), normalizes_latents=False)
    assert model.alignment is None
    assert model.latent_norm is None


def test_table_without_null_row_gets_a_zero_one() -> None:
    key = "y_embedder.embedding_table.weight"
    table = convert({**HOST, key: HOST[key][:-1]}).state_dict()["backbone.label_embed.table.weight"]
    assert torch.equal(table[:-1], HOST[key][:-1])
    assert table[-1].abs().max() == 0


def test_ddp_prefix_is_cut() -> None:
    assert isinstance(convert({f"module.{name}": tensor for name, tensor in HOST.items()}), SiT)


NAN_POSITIONS = HOST["pos_embed"].clone()
NAN_POSITIONS[0, 0, 0] = torch.nan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"decoder.conv_in.weight": torch.zeros(1)},
            r"1 of \d+ tensors are unknown: decoder\.conv_in\.weight\. Check .*a second projector is not supported",
        ),
        ({"final_layer.linear.bias": None}, r"of \d+ tensors 1 missing: backbone\.head\.linear\.bias"),
        (
            {"blocks.2.attn.qkv.weight": HOST["blocks.1.attn.qkv.weight"]},
            r"1 unexpected: backbone\.layers\.2\.attention\.qkv\.weight",
        ),
        ({"blocks.0.mlp.fc1.bias": torch.zeros(64)}, r"1 of another shape: .* \(64,\) instead of \(128,\)"),
        ({"pos_embed": HOST["pos_embed"] + 0.01}, "is not the sine-cosine table"),
        ({"pos_embed": NAN_POSITIONS}, "is not the sine-cosine table"),
    ],
    ids=["unknown", "missing", "too deep", "shape", "other positions", "no positions"],
)
def test_weights_of_another_network_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    host = {name: tensor for name, tensor in {**HOST, **changes}.items() if tensor is not None}
    with pytest.raises(WeightsError, match=message):
        convert(host)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_with_the_tolerance_of_its_type(dtype: torch.dtype) -> None:
    host = {
        name.replace("blocks.", "blocks._orig_mod."): tensor.to(dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in HOST.items()
    }
    converted = convert(host).state_dict()["backbone.patch_embed.weight"]
    torch.testing.assert_close(converted, host["x_embedder.proj.weight"].float(), rtol=0, atol=0)
    host["pos_embed"] = host["pos_embed"] + 4 * torch.finfo(dtype).eps
    with pytest.raises(WeightsError, match="pos_embed"):
        convert(host)


def randomize(host: torch.nn.Module) -> Any:
    with torch.no_grad():
        for name, parameter in host.named_parameters():
            if name != "pos_embed":
                parameter.normal_(std=0.05)
    return host.eval()


@both_interpolants
def test_random_weights_of_a_real_checkout_agree(interpolant: PathType) -> None:
    sizes = {"input_size": 16, "num_classes": 10, "z_dims": [24], "projector_dim": 32, "encoder_depth": 4}
    host_class = import_from("REPA_E_DIR", "models.sit").SiT_B_2
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


@both_interpolants
@pytest.mark.parametrize("method", ["euler", "heun", "euler_maruyama"])
def test_samples_of_a_real_checkout_agree(
    method: str, interpolant: PathType, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"input_size": 8, "hidden_size": 32, "decoder_hidden_size": 32, "depth": 2, "num_heads": 4}
    host_class = import_from("REPA_E_DIR", "models.sit").SiT
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
        samplers = import_from("REPA_E_DIR", "samplers")
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
