"""A checkpoint in the latent-diffusion layout computes the same through us as in its own network."""

import importlib.util
import os
import sys
import types
from pathlib import Path

import pytest
import torch

from simflow_plugin.autoencoders.kl import KLAutoencoder, KLOptions
from simflow_plugin.autoencoders.ldm import diffusers_name
from simflow_plugin.errors import WeightsError
from tests.autoencoders.ldm_network import Oracle, Sizes, random_weights

F8 = Sizes((8, 16, 16, 16), latent_channels=4, num_layers=2)
F16 = Sizes((8, 8, 16, 16, 32), latent_channels=6, num_layers=2, attention_levels=(4,))
NUM_GROUPS = 4


def load(path: Path, weights, posterior: str = "learnable", **options) -> KLAutoencoder:
    torch.save(weights, path)
    return KLAutoencoder(
        KLOptions.model_validate(
            {"pretrained": str(path), "norm_num_groups": NUM_GROUPS, "posterior": posterior, **options}
        )
    )


def images(size: int = 32) -> torch.Tensor:
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("sizes", [F8, F16], ids=["f8", "f16"])
def test_encoder_and_decoder_match_the_oracle(sizes, tmp_path):
    oracle = Oracle(random_weights(sizes), sizes, NUM_GROUPS)
    autoencoder = load(tmp_path / "vae.pt", oracle.weights)
    posterior = autoencoder.encode(images())
    mean, log_variance = oracle.moments(images()).chunk(2, dim=1)
    torch.testing.assert_close(posterior.mean, mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(posterior.log_variance, log_variance, atol=1e-5, rtol=1e-4)
    latents = torch.randn(1, sizes.latent_channels, 2, 2, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(autoencoder.decode(latents), oracle.images(latents), atol=1e-5, rtol=1e-4)


def test_fixed_head_keeps_the_mean_of_the_oracle(tmp_path):
    oracle = Oracle(random_weights(F8), F8, NUM_GROUPS)
    posterior = load(tmp_path / "vae.pt", oracle.weights, posterior="fixed").encode(images())
    torch.testing.assert_close(posterior.mean, oracle.moments(images())[:, :4], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("sizes", [F8, F16], ids=["f8", "f16"])
def test_architecture_is_read_off_the_weights(sizes, tmp_path):
    found = load(tmp_path / "vae.pt", random_weights(sizes)).architecture
    assert (found.widths, found.latent_channels, found.layers_per_block, found.attention_levels) == (
        sizes.widths,
        sizes.latent_channels,
        sizes.num_layers,
        sizes.attention_levels,
    )


@pytest.mark.parametrize("wrap", ["first_stage_model.", "module.", "_orig_mod."])
def test_prefix_and_nesting_are_seen_through(wrap, tmp_path):
    weights = random_weights(F8)
    content = {
        "state_dict": {f"{wrap}{name}": value for name, value in weights.items()}
        | {f"{wrap}loss.discriminator.main.0.weight": torch.zeros(1)},
        "step": 3,
    }
    assert load(tmp_path / "vae.ckpt", content).architecture.latent_channels == 4


def test_training_checkpoint_of_the_repa_e_host_gives_its_autoencoder(tmp_path):
    content = {"vae": random_weights(F8), "model": {"blocks.0.weight": torch.zeros(1)}, "ema": {}}
    assert load(tmp_path / "0400000.pt", content).architecture.widths == F8.widths


def test_latent_statistics_beside_the_checkpoint_are_taken(tmp_path):
    stats = {"latents_scale": torch.rand(1, 4, 1, 1) + 0.5, "latents_bias": torch.randn(1, 4, 1, 1)}
    torch.save(stats, tmp_path / "vae-latents-stats.pt")
    oracle = Oracle(random_weights(F8), F8, NUM_GROUPS)
    posterior = load(tmp_path / "vae.pt", oracle.weights, posterior="fixed").encode(images())
    expected = (oracle.moments(images())[:, :4] - stats["latents_bias"]) * stats["latents_scale"]
    torch.testing.assert_close(posterior.mean, expected, atol=1e-5, rtol=1e-4)


def test_scale_option_overrides_the_statistics(tmp_path):
    stats = {"latents_scale": torch.full((1, 4, 1, 1), 9.0), "latents_bias": torch.ones(1, 4, 1, 1)}
    torch.save(stats, tmp_path / "vae-latents-stats.pt")
    autoencoder = load(tmp_path / "vae.pt", random_weights(F8), scale=0.18215)
    assert (autoencoder.latent_scale == torch.tensor(0.18215)).all()


def test_every_name_maps_to_another():
    names = [diffusers_name(name, num_levels=5) for name in random_weights(F16)]
    assert len(set(names)) == len(names)


def test_missing_tensor_is_named(tmp_path):
    weights = random_weights(F8)
    del weights["decoder.up.3.block.1.conv2.bias"]
    with pytest.raises(
        WeightsError, match=r"vae\.pt.*1 missing: decoder\.up_blocks\.0\.resnets\.1\.conv2\.bias"
    ):
        load(tmp_path / "vae.pt", weights)


def test_unknown_tensor_is_named(tmp_path):
    weights = random_weights(F8) | {"encoder.down.0.gate.weight": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"1 unexpected: encoder\.down_blocks\.0\.gate\.weight"):
        load(tmp_path / "vae.pt", weights)


def test_option_that_contradicts_the_weights_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"latent_channels is 4, but the option latent_channels is 16"):
        load(tmp_path / "vae.pt", random_weights(F8), latent_channels=16)


def _host_module(checkout: str) -> types.ModuleType:
    """Import the host's autoencoder alone; `dictdot`, which it wants, is a dictionary with attributes."""
    stand_in = types.ModuleType("dictdot")
    stand_in.dictdot = type("dictdot", (dict,), {"__getattr__": dict.__getitem__})
    sys.modules.setdefault("dictdot", stand_in)
    spec = importlib.util.spec_from_file_location("host_autoencoder", f"{checkout}/models/autoencoder.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif("REPA_E_DIR" not in os.environ, reason="set REPA_E_DIR to a checkout of the REPA-E host")
@pytest.mark.parametrize("name", ["f8d4", "f16d32"])
def test_reconstruction_equals_that_of_the_repa_e_host(name, tmp_path):
    host = _host_module(os.environ["REPA_E_DIR"]).vae_models[name]().eval()
    ours = load(tmp_path / "vae.pt", host.state_dict(), norm_num_groups=None)
    with torch.no_grad():
        expected = host.encode(images()).mode()
        torch.testing.assert_close(ours.encode(images()).mode(), expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours.decode(expected), host.decode(expected).sample, atol=1e-4, rtol=1e-4)
