"""Pretrained autoencoders are found, read exactly, or refused with the file and the way out."""

import json
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from simflow_plugin.autoencoders.architecture import Architecture
from simflow_plugin.autoencoders.kl import KLAutoencoder, KLOptions
from simflow_plugin.errors import WeightsError

ARCHITECTURE = Architecture(
    (8, 16),
    latent_channels=4,
    layers_per_block=1,
    norm_num_groups=4,
    attention_levels=(1,),
    uses_quant_conv=True,
)
WEIGHTS = "diffusion_pytorch_model.safetensors"


def folder(tmp_path, **config):
    """Save a random diffusers autoencoder, and return its folder and itself."""
    torch.manual_seed(0)
    network = ARCHITECTURE.build(num_moments=8)
    network.register_to_config(**config)
    network.save_pretrained(tmp_path / "vae")
    return tmp_path / "vae", network


def load(path, **options) -> KLAutoencoder:
    return KLAutoencoder(KLOptions.model_validate({"pretrained": str(path), **options}))


def images() -> torch.Tensor:
    return torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_folder_encodes_and_decodes_as_diffusers_does(tmp_path):
    path, network = folder(tmp_path, scaling_factor=0.5, shift_factor=0.1)
    autoencoder = load(path, posterior="learnable")
    posterior, expected = autoencoder.encode(images()), network.encode(images()).latent_dist
    torch.testing.assert_close(posterior.mean, (expected.mean - 0.1) * 0.5, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(posterior.std, expected.std * 0.5, atol=1e-5, rtol=1e-4)
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    decoded = network.decode(latents / 0.5 + 0.1).sample
    torch.testing.assert_close(autoencoder.decode(latents), decoded, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("config", "shift", "scale"),
    [
        ({"scaling_factor": 0.25, "shift_factor": 0.5}, [0.5] * 4, [0.25] * 4),
        (
            {"scaling_factor": 1.0, "latents_mean": [1.0, 2.0, 3.0, 4.0], "latents_std": [2.0] * 4},
            [1.0, 2.0, 3.0, 4.0],
            [0.5] * 4,
        ),
    ],
    ids=["numbers", "by channel"],
)
def test_shift_and_scale_come_from_the_config(tmp_path, config, shift, scale):
    autoencoder = load(folder(tmp_path, **config)[0])
    assert autoencoder.latent_shift.flatten().tolist() == shift
    assert autoencoder.latent_scale.flatten().tolist() == scale


def test_single_diffusers_file_gives_what_its_folder_gives(tmp_path):
    path, _ = folder(tmp_path, scaling_factor=1.0)
    from_file = load(path / WEIGHTS, norm_num_groups=4, pretrained_format="diffusers")
    torch.testing.assert_close(from_file.encode(images()).mean, load(path).encode(images()).mean)


def test_subfolder_is_followed(tmp_path):
    folder(tmp_path)
    assert load(tmp_path, subfolder="vae").architecture == ARCHITECTURE


def test_forgotten_subfolder_is_hinted_at(tmp_path):
    folder(tmp_path)
    with pytest.raises(WeightsError, match="set `subfolder: vae`"):
        load(tmp_path)


def test_folder_that_lacks_a_tensor_is_refused(tmp_path):
    path, _ = folder(tmp_path)
    tensors = load_file(path / WEIGHTS)
    del tensors["decoder.conv_in.bias"]
    save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"vae.*decoder\.conv_in\.bias"):
        load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_out_channels": [8, 32]}, r"vae: .*of another shape: .* instead of \(32,"),
        ({"_class_name": "AutoencoderDC"}, "of a AutoencoderDC"),
    ],
)
def test_folder_whose_config_is_of_another_network_is_refused(tmp_path, change, message):
    path, _ = folder(tmp_path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(WeightsError, match=message):
        load(path)


def test_folder_with_a_damaged_config_is_refused(tmp_path):
    path, _ = folder(tmp_path)
    for content in ("{", "{}"):
        (path / "config.json").write_text(content)
        with pytest.raises(WeightsError, match=r"vae: .*(torn|does not state down_block_types)"):
            load(path)


@pytest.mark.parametrize("name", ["vae.safetensors", "vae.pt"])
def test_torn_file_is_refused(name, tmp_path):
    path = tmp_path / name
    tensors = {"encoder.conv_in.weight": torch.zeros(64, 3, 3, 3)}
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=rf"{name}.*torn"):
        load(path)


def test_file_with_python_objects_is_not_unpickled(tmp_path):
    torch.save({"callback": KLOptions()}, tmp_path / "vae.ckpt")
    with pytest.raises(WeightsError, match="more than tensors"):
        load(tmp_path / "vae.ckpt")


def test_file_of_another_model_is_refused(tmp_path):
    save_file({"blocks.0.weight": torch.zeros(1)}, tmp_path / "sit.safetensors")
    with pytest.raises(WeightsError, match=r"sit\.safetensors: expected one autoencoder.*blocks\.0\.weight"):
        load(tmp_path / "sit.safetensors")


def test_file_with_two_autoencoders_is_refused(tmp_path):
    anchors = {
        "encoder.conv_in.weight": torch.zeros(8, 3, 3, 3),
        "decoder.conv_in.weight": torch.zeros(8, 4, 3, 3),
    }
    both = {f"{prefix}.{name}": value.clone() for prefix in ("ema", "vae") for name, value in anchors.items()}
    save_file(both, tmp_path / "two.safetensors")
    with pytest.raises(WeightsError, match=r"found 2, under 'ema\.', 'vae\.'"):
        load(tmp_path / "two.safetensors")


def test_unexpected_layout_is_refused(tmp_path):
    path, _ = folder(tmp_path)
    with pytest.raises(WeightsError, match="found the layout `diffusers`, but pretrained_format is `ldm`"):
        load(path, pretrained_format="ldm")


@pytest.mark.parametrize("name", ["missing/vae.pt", "/missing/folder", "missing.safetensors"])
def test_missing_file_is_named(name):
    with pytest.raises(WeightsError, match=f"{name}: no such file"):
        load(name)


def test_hub_name_that_cannot_be_reached_fails_within_seconds():
    start = time.monotonic()
    with pytest.raises(WeightsError, match=r"https://huggingface\.co/nobody/no-such-vae.*set `pretrained`"):
        load("nobody/no-such-vae")
    assert time.monotonic() - start < 10
