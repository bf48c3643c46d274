"""The host's autoencoder with a fixed variance: same weights, same call, a posterior of constant width."""

from __future__ import annotations

import sys

import pytest
import torch

from simflow_plugin.errors import HostError
from simflow_plugin.hosts.fixed_variance import FixedVarianceAutoencoder, FixedVarianceFactory
from simflow_plugin.hosts.repa_e_adapters import add_autoencoders
from tests.hosts.standin_host.autoencoders import ConvVae


@pytest.fixture
def vae():
    return FixedVarianceFactory(ConvVae, 4, 8, std=0.5)()


def test_weights_and_mean_are_those_of_the_hosts_own_and_the_width_is_constant(vae):
    own, images = ConvVae(), torch.rand(2, 3, 32, 32)
    vae.load_state_dict(own.state_dict())
    assert own.state_dict().keys() == vae.state_dict().keys()
    posterior, latents, reconstruction = vae(images)
    torch.testing.assert_close(posterior.mean, own(images)[0].mean)
    assert (posterior.std == 0.5).all()
    assert latents.shape == (2, 4, 4, 4)
    torch.testing.assert_close(reconstruction, vae.decode(latents).sample)
    assert posterior.kl().shape == (2,)
    assert vae(images, return_recon=False)[2] is None


def test_half_precision_gives_a_float32_posterior(vae):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        posterior, latents, _ = vae(torch.rand(1, 3, 32, 32))
    assert posterior.mean.dtype == latents.dtype == torch.float32


def test_f16d64_is_the_hosts_class_without_a_log_variance(monkeypatch):
    built = {}

    class AutoencoderKL(ConvVae):
        def __init__(self, **options):
            super().__init__()
            built.update(options)

    monkeypatch.setattr(sys.modules[ConvVae.__module__], "AutoencoderKL", AutoencoderKL, raising=False)
    factories = {"f8d4": ConvVae, "f16d32": ConvVae}
    add_autoencoders(factories)
    shapes = {name: factory.latent_shape(256) for name, factory in factories.items() if "-" in name}
    assert shapes == {
        "f8d4-fixedvar": (4, 32, 32),
        "f16d32-fixedvar": (32, 16, 16),
        "f16d64-fixedvar": (64, 16, 16),
    }
    assert isinstance(factories["f16d64-fixedvar"](), FixedVarianceAutoencoder)
    assert built == {"embed_dim": 64, "ch_mult": [1, 1, 2, 2, 4], "use_variational": False}


def test_f16d64_without_the_hosts_class_is_refused():
    factories = {"f16d32": ConvVae}
    add_autoencoders(factories)
    with pytest.raises(HostError, match="no class AutoencoderKL"):
        factories["f16d64-fixedvar"]()


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (
            lambda: FixedVarianceFactory(ConvVae, 4, 8).latent_shape(36),
            "multiple of the autoencoder's factor 8",
        ),
        (lambda: FixedVarianceAutoencoder(torch.nn.Linear(1, 1), 4), "has no `encoder`"),
    ],
)
def test_another_resolution_and_a_network_of_other_parts_are_refused(mistake, message):
    with pytest.raises(HostError, match=message):
        mistake()
