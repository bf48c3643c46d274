"""An exported f16d64 in the REPA-E host's layout: read back here, and loaded by the host's own class."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from simflow_plugin.autoencoders.kl import KLAutoencoder
from simflow_plugin.autoencoders.ldm import diffusers_to_ldm, ldm_to_diffusers
from simflow_plugin.convert.repa_e_export import write_repa_e
from simflow_plugin.errors import WeightsError
from tests.convert.peers import import_from

F16D64 = {
    "architecture": "f16d64",
    "widths": [32, 32, 64, 64, 128],
    "posterior": {"name": "fixed", "std": 0.5},
}


def build(**options):
    torch.manual_seed(0)
    autoencoder = KLAutoencoder(KLAutoencoder.Options.model_validate(F16D64 | options)).eval()
    channels = autoencoder.latent_channels
    autoencoder.fit_normalization(torch.linspace(-1, 1, channels), torch.linspace(0.5, 2, channels))
    return autoencoder


def images():
    return torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_name_fills_in_the_published_numbers():
    options = KLAutoencoder.Options.model_validate({"architecture": "f16d64"})
    assert (options.factor, options.latent_channels, options.layers_per_block) == (16, 64, 2)
    assert options.widths == [width * 128 for width in (1, 1, 2, 2, 4)]
    assert (options.attention_levels, options.uses_quant_conv) == ([4], True)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"architecture: unknown `f16d46`\. Did you mean `f16d64`"):
        KLAutoencoder.Options.model_validate({"architecture": "f16d46"})


def test_encoder_of_a_fixed_variance_has_no_log_variance():
    network = build().network
    assert network.quant_conv.weight.shape == (64, 128, 1, 1)


def test_names_of_both_layouts_are_inverse():
    state = build().network.state_dict()
    back = ldm_to_diffusers(diffusers_to_ldm(state))
    assert list(back) == list(state)
    assert all(torch.equal(back[name], state[name]) for name in state)


@torch.no_grad()
def test_exported_file_reads_back(tmp_path):
    ours = build()
    write_repa_e(ours.to_diffusers(), tmp_path / "vae.pt")
    options = {
        "pretrained": str(tmp_path / "vae.pt"),
        "pretrained_format": "ldm",
        "posterior": F16D64["posterior"],
    }
    back = KLAutoencoder(KLAutoencoder.Options.model_validate(options)).eval()
    expected, found = ours.encode(images()), back.encode(images())
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.std.expand_as(found.mean), expected.std.expand_as(expected.mean))
    torch.testing.assert_close(back.decode(found.mean), ours.decode(expected.mean))


@torch.no_grad()
def test_learned_variance_of_another_shape_keeps_its_moments(tmp_path):
    ours = build(latent_channels=32, posterior="learnable")
    write_repa_e(ours.to_diffusers(), tmp_path / "vae.pt")
    weights = torch.load(tmp_path / "vae.pt", weights_only=True)
    assert weights["quant_conv.weight"].shape == (64, 64, 1, 1)
    statistics = torch.load(tmp_path / "vae-latents-stats.pt", weights_only=True)
    assert {name: value.shape for name, value in statistics.items()} == {
        "latents_scale": (1, 32, 1, 1),
        "latents_bias": (1, 32, 1, 1),
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"posterior": "learnable"}, "variance depends on the image"),
        ({"uses_quant_conv": False}, "1 x 1 convolutions"),
        ({"norm_num_groups": 16}, "32 groups, these 16"),
    ],
)
def test_what_the_host_cannot_express_is_refused(options, message, tmp_path):
    with pytest.raises(WeightsError, match=message):
        write_repa_e(build(**options).to_diffusers(), tmp_path / "vae.pt")
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_the_hosts_own_class_encodes_and_decodes_alike(tmp_path, monkeypatch):
    dictdot = ModuleType("dictdot")
    dictdot.dictdot = lambda values: SimpleNamespace(**values)
    monkeypatch.setitem(sys.modules, "dictdot", dictdot)
    host = import_from("REPA_E_DIR", "models.autoencoder")
    for part in (host.Encoder, host.Decoder):
        monkeypatch.setitem(part.__init__.__kwdefaults__, "ch", 32)
    theirs = host.AutoencoderKL(embed_dim=64, ch_mult=[1, 1, 2, 2, 4], use_variational=False).eval()
    ours = build()
    write_repa_e(ours.to_diffusers(), tmp_path / "vae.pt")
    theirs.load_state_dict(torch.load(tmp_path / "vae.pt", weights_only=True))
    # The host counts attention by the resolution of images of 256 pixels, whatever their size.
    statistics = torch.load(tmp_path / "vae-latents-stats.pt", weights_only=True)
    latents = (theirs.encode(images()).mean - statistics["latents_bias"]) * statistics["latents_scale"]
    torch.testing.assert_close(latents, ours.encode(images()).mean, rtol=1e-4, atol=1e-5)
    raw = latents / statistics["latents_scale"] + statistics["latents_bias"]
    torch.testing.assert_close(theirs.decode(raw).sample, ours.decode(latents), rtol=1e-4, atol=1e-5)
