"""An exported autoencoder is the run's averaged one, with latents of zero mean and unit variance."""

import pytest
import torch

from simflow_plugin.autoencoders.kl import KLAutoencoder
from simflow_plugin.engine.loaded_run import load_run
from simflow_plugin.studies.autoencoder_export import (
    export_autoencoder,
    latent_mean_and_std,
    std_before_scaling,
)
from tests.engine.tiny_runs import make_trainer, tiny_config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "autoencoder"
    make_trainer(tiny_config(None, steps=2, checkpoint_every=2), path).train()
    return path


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
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = original.decode(original.encode(images).mode())
    torch.testing.assert_close(ours.decode(ours.encode(images).mode()), expected, atol=1e-5, rtol=1e-4)


def test_std_before_scaling_is_the_std_that_was_asked_for_after_it(run, tmp_path):
    path, ours = exported(run, tmp_path)
    stds = torch.tensor(std_before_scaling(path, 0.5))
    torch.testing.assert_close(stds * ours.latent_scale.flatten(), torch.full((4,), 0.5), atol=1e-4, rtol=0)
