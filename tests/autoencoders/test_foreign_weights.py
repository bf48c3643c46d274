"""Autoencoders as others publish them: the scale of their latents, earlier names, wrapped names, broken values."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from simflow_plugin.autoencoders.kl import KLAutoencoder, KLOptions
from simflow_plugin.errors import WeightsError
from tests.autoencoders.ldm_network import Sizes, random_weights
from tests.autoencoders.test_pretrained import WEIGHTS, folder, images

F8 = Sizes((8, 16, 16, 16), latent_channels=4, num_layers=2)
EARLIER = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def load(path, **options) -> KLAutoencoder:
    return KLAutoencoder(KLOptions.model_validate({"pretrained": str(path), "norm_num_groups": 4, **options}))


def ldm(path, content):
    torch.save(content, path)
    return path


def write_config(path, **values):
    path.write_text(json.dumps({"_class_name": "AutoencoderKL", **values}))


def statistics(autoencoder) -> tuple[float, float]:
    return autoencoder.latent_shift.unique().item(), autoencoder.latent_scale.unique().item()


def test_single_file_takes_the_normalisation_of_the_config_beside_it(tmp_path):
    path, _ = folder(tmp_path, scaling_factor=0.25, shift_factor=0.5)
    assert statistics(load(path / WEIGHTS)) == statistics(load(path)) == (0.5, 0.25)


def test_single_file_takes_the_groups_of_the_config_beside_it(tmp_path):
    path, _ = folder(tmp_path, scaling_factor=1.0)
    assert load(path / WEIGHTS, norm_num_groups=None).architecture.norm_num_groups == 4


@pytest.mark.parametrize("place", ["file", "folder"])
def test_config_of_an_early_diffusers_has_the_scale_that_its_class_had(place, tmp_path):
    path, _ = folder(tmp_path)
    config = json.loads((path / "config.json").read_text())
    del config["scaling_factor"], config["shift_factor"]
    (path / "config.json").write_text(json.dumps(config))
    assert load(path / WEIGHTS if place == "file" else path).latent_scale.unique().item() == pytest.approx(
        0.18215
    )


@pytest.mark.parametrize(
    "around",
    [
        {"scale_factor": torch.tensor(0.18215)},
        {"scale_factor": 0.18215},
        {"hyper_parameters": {"scale_factor": 0.18215, "lr": 1e-4}},
        {"scale_factor": torch.tensor(0.18215), "hyper_parameters": {"scale_factor": 1.0}},
    ],
    ids=["buffer", "number", "argument", "nearest"],
)
def test_latent_diffusion_checkpoint_gives_its_scale_factor(around, tmp_path, caplog):
    inner = {f"first_stage_model.{name}": value for name, value in random_weights(F8).items()}
    autoencoder = load(ldm(tmp_path / "sd.ckpt", {**inner, **around}))
    assert statistics(autoencoder) == (0.0, pytest.approx(0.18215))
    assert not caplog.records


def test_scale_factors_that_disagree_are_refused(tmp_path):
    inner = {f"first_stage_model.{name}": value for name, value in random_weights(F8).items()}
    content = {"state_dict": inner, "a": {"scale_factor": 0.1}, "b": {"scale_factor": 0.2}}
    with pytest.raises(
        WeightsError, match=r"sd\.ckpt: holds more than one scale_factor: a\..*, b\..*`scale`"
    ):
        load(ldm(tmp_path / "sd.ckpt", content))


def test_config_beside_an_ldm_file_gives_its_scale(tmp_path):
    write_config(tmp_path / "config.json", scaling_factor=0.5)
    assert statistics(load(ldm(tmp_path / "vae.pt", random_weights(F8)))) == (0.0, 0.5)


@pytest.mark.parametrize("config", [None, {"_class_name": "UNet2DConditionModel", "scaling_factor": 9.0}])
def test_unknown_scale_is_one_warning_that_names_the_option(config, tmp_path, caplog):
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    path = ldm(tmp_path / "vae.pt", random_weights(F8))
    with caplog.at_level(logging.WARNING):
        assert statistics(load(path)) == (0.0, 1.0)
    (message,) = [record.getMessage() for record in caplog.records]
    assert str(path) in message
    assert "autoencoder.scale" in message
    caplog.clear()
    load(path, scale=1.0)
    assert not caplog.records


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_scale_that_is_no_scale_is_refused(value, tmp_path):
    content = {**random_weights(F8), "scale_factor": value}
    with pytest.raises(
        WeightsError, match=r"vae\.pt: scale of the latents is .* above 0\. Set the option `scale`"
    ):
        load(ldm(tmp_path / "vae.pt", content))


def test_torn_or_wordy_config_beside_a_file_is_refused_by_name(tmp_path):
    path = ldm(tmp_path / "vae.pt", random_weights(F8))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json: cannot be read, perhaps torn"):
        load(path)
    write_config(tmp_path / "config.json", scaling_factor="large")
    with pytest.raises(WeightsError, match=r"config\.json: scaling_factor.*expected numbers"):
        load(path)


@pytest.mark.parametrize("is_convolution", [False, True], ids=["linear", "convolution"])
@pytest.mark.parametrize("place", ["file", "folder"])
def test_attention_under_the_names_of_early_diffusers_computes_the_same(place, is_convolution, tmp_path):
    path, network = folder(tmp_path, scaling_factor=1.0)
    tensors = {}
    for name, value in load_file(path / WEIGHTS).items():
        for new, old in EARLIER.items():
            if f".{new}." in name:
                name = name.replace(f".{new}.", f".{old}.")
                value = value[:, :, None, None] if is_convolution and value.dim() == 2 else value
        tensors[name] = value.contiguous()
    assert sum(".query." in name for name in tensors) > 1
    save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})
    autoencoder = load(path / WEIGHTS if place == "file" else path, posterior="fixed")
    expected = network.encode(images()).latent_dist.mean
    torch.testing.assert_close(autoencoder.encode(images()).mean, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layout", ["diffusers", "ldm"])
def test_wrappers_inside_names_are_taken_off(layout, tmp_path):
    if layout == "ldm":
        tensors = random_weights(F8)
    else:
        path, _ = folder(tmp_path)
        tensors = load_file(path / WEIGHTS)
    wrapped = {
        name.replace("coder.", "coder._orig_mod.").replace(
            "resnets.0.", "resnets.0._checkpoint_wrapped_module."
        ): v
        for name, v in tensors.items()
    }
    assert load(ldm(tmp_path / "vae.pt", wrapped), scale=1.0).latent_channels == 4


def test_weights_that_are_not_finite_are_refused_by_tensor(tmp_path):
    broken = random_weights(F8)
    broken["decoder.conv_in.bias"][0] = float("inf")
    with pytest.raises(WeightsError, match=r"vae\.pt: .*1 not finite .*: decoder\.conv_in\.bias"):
        load(ldm(tmp_path / "vae.pt", broken), scale=1.0)
