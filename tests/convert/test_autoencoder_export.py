"""An exported autoencoder is the run's averaged one, its latents of zero mean and unit variance; diffusers reads it."""

import pytest
import torch
import yaml
from diffusers import AutoencoderKL

from simflow_plugin.autoencoders.kl import KLAutoencoder
from simflow_plugin.convert.autoencoder_export import (
    export_autoencoder,
    latent_mean_and_std,
    std_before_scaling,
)
from simflow_plugin.errors import ConfigError, RunDirectoryError, WeightsError
from simflow_plugin.runs.loaded_run import load_run
from tests.commands import simflow, succeed
from tests.training.tiny_runs import make_trainer, tiny_config, tiny_values


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "autoencoder"
    make_trainer(tiny_config(None, steps=2, checkpoint_every=2), path).train()
    return path


def some_images():
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def exported(run, tmp_path):
    path = tmp_path / "autoencoder.safetensors"
    export_autoencoder(load_run(run, "cpu"), path, num_images=200)
    options = {"pretrained": str(path), "pretrained_format": "simflow", "trainable": "none"}
    return path, KLAutoencoder(KLAutoencoder.Options.model_validate(options)).eval()


def test_latents_have_zero_mean_and_unit_variance_by_channel(run, tmp_path):
    loaded = load_run(run, "cpu")
    export_autoencoder(loaded, tmp_path / "a.safetensors", num_images=200)
    mean, std = latent_mean_and_std(loaded, 200)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-4, rtol=0)
    torch.testing.assert_close(std, torch.ones_like(std), atol=1e-4, rtol=0)


@torch.no_grad()
def test_reconstruction_is_that_of_the_averaged_weights(run, tmp_path):
    original = load_run(run, "cpu").autoencoder
    _, ours = exported(run, tmp_path)
    expected = original.decode(original.encode(some_images()).mode())
    torch.testing.assert_close(ours.decode(ours.encode(some_images()).mode()), expected, atol=1e-5, rtol=1e-4)


def test_std_before_scaling_is_the_std_that_was_asked_for_after_it(run, tmp_path):
    path, ours = exported(run, tmp_path)
    stds = torch.tensor(std_before_scaling(path, 0.5))
    torch.testing.assert_close(stds * ours.latent_scale.flatten(), torch.full((4,), 0.5), atol=1e-4, rtol=0)


def train_briefly(path, changes):
    values = tiny_values(None, steps=2, checkpoint_every=2)
    values["autoencoder"] |= changes
    make_trainer(tiny_config(values=values), path).train()


@pytest.mark.parametrize("posterior", [{"name": "fixed", "std": [0.3, 0.5, 0.7, 0.9]}, "learnable"])
def test_diffusers_has_the_same_posterior_and_decoder(posterior, tmp_path):
    """The posterior before normalisation, in mean and std; and the decoder, once latents are scaled as it says."""
    train_briefly(tmp_path / "run", {"posterior": posterior})
    loaded = load_run(tmp_path / "run", "cpu")
    export_autoencoder(loaded, tmp_path / "vae", 100)
    ours, theirs = loaded.autoencoder, AutoencoderKL.from_pretrained(tmp_path / "vae")
    expected, found = ours.head(ours.moments(some_images())), theirs.encode(some_images()).latent_dist
    torch.testing.assert_close(found.mean, expected.mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.std, expected.std.expand_as(found.std), atol=1e-5, rtol=1e-4)
    latents = ours.encode(some_images()).mode()
    mean, std = (torch.tensor(theirs.config[f"latents_{name}"])[:, None, None] for name in ("mean", "std"))
    torch.testing.assert_close((found.mean - mean) / std, latents, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        theirs.decode(latents * std + mean).sample, ours.decode(latents), atol=1e-5, rtol=1e-4
    )


@torch.no_grad()
@pytest.mark.parametrize("name", ["vae", "vae.safetensors"])
def test_the_options_that_are_returned_read_it_back(name, run, tmp_path):
    loaded = load_run(run, "cpu")
    options = export_autoencoder(loaded, tmp_path / name, None)
    assert options.pop("name") == "kl"
    ours = KLAutoencoder(KLAutoencoder.Options.model_validate(options)).eval()
    expected, found = (autoencoder.encode(some_images()) for autoencoder in (loaded.autoencoder, ours))
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.std, expected.std)
    latents = found.mode()
    torch.testing.assert_close(ours.decode(latents), loaded.autoencoder.decode(latents))


def test_groups_of_norms_are_in_the_options_where_weights_do_not_tell(tmp_path):
    train_briefly(tmp_path / "run", {"norm_num_groups": 4})
    options = export_autoencoder(load_run(tmp_path / "run", "cpu"), tmp_path / "vae.safetensors", None)
    assert options["norm_num_groups"] == 4


@pytest.mark.parametrize(
    "posterior", [{"name": "fixed_layernorm", "std": 0.5}, {"name": "learnable_noise", "noise_std": 0.5}]
)
def test_what_diffusers_cannot_express_is_refused_and_nothing_is_written(posterior, tmp_path):
    train_briefly(tmp_path / "run", {"posterior": posterior})
    with pytest.raises(WeightsError, match=r"diffusers.*\.safetensors"):
        export_autoencoder(load_run(tmp_path / "run", "cpu"), tmp_path / "vae", None)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_place_that_is_taken_is_refused(run, tmp_path):
    loaded = load_run(run, "cpu")
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "mine").touch()
    with pytest.raises(RunDirectoryError, match="not empty"):
        export_autoencoder(loaded, tmp_path / "vae")
    with pytest.raises(ConfigError, match=r"vae\.bin.*\.safetensors"):
        export_autoencoder(loaded, tmp_path / "vae.bin")


def test_command_prints_the_options(run, tmp_path):
    out = tmp_path / "vae.safetensors"
    words = ("export", run, "--out", out, "--keep-scale")
    options = yaml.safe_load(succeed(*words).split("\n\n")[1])["autoencoder"]
    assert options["pretrained"] == str(out)
    assert simflow(*words, "--num-images", "9")[0] == 2
