"""The KL autoencoder: shapes, normalisation, what is frozen, and what a checkpoint restores."""

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from simflow_plugin.autoencoders.kl import KLAutoencoder, KLOptions
from simflow_plugin.errors import ConfigError, ShapeError, WeightsError

TINY = {"factor": 2, "widths": [8, 16], "latent_channels": 4, "layers_per_block": 1}
NAMES = ["fixed", "learnable", "fixed_layernorm"]


def build(seed: int = 0, **options) -> KLAutoencoder:
    torch.manual_seed(seed)
    return KLAutoencoder(KLOptions.model_validate({**TINY, **options}))


def images(size: int = 8) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("name", NAMES)
def test_shapes_are_those_of_latent_shape(name):
    autoencoder = build(posterior=name)
    latents = autoencoder.encode(images()).sample()
    assert (latents.shape[1:], autoencoder.decode(latents).shape) == (
        autoencoder.latent_shape(8),
        (2, 3, 8, 8),
    )


@pytest.mark.parametrize("widths", [[8], [8, 8, 8]])
def test_factor_follows_from_widths(widths):
    autoencoder = build(factor=None, widths=widths)
    assert autoencoder.encode(images()).mean.shape[-1] * autoencoder.factor == 8


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("uses_quant_conv", [False, True])
def test_every_parameter_has_a_gradient(name, uses_quant_conv):
    autoencoder = build(posterior=name, uses_quant_conv=uses_quant_conv, attention_levels=[1])
    posterior = autoencoder.encode(images())
    (autoencoder.decode(posterior.sample()).square().mean() + posterior.kl().mean()).backward()
    assert [name for name, p in autoencoder.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("uses_quant_conv", [False, True])
def test_fixed_variance_has_no_variance_channels(uses_quant_conv):
    network = build(uses_quant_conv=uses_quant_conv).network
    last = network.quant_conv if uses_quant_conv else network.encoder.conv_out
    assert last.out_channels == 4


def test_normalization_is_undone_by_decode():
    plain, shifted = build(), build(shift=[0.1, 0.2, 0.3, 0.4], scale=3.0)
    shifted.network.load_state_dict(plain.network.state_dict())
    expected = plain.decode(plain.encode(images()).mode())
    torch.testing.assert_close(
        shifted.decode(shifted.encode(images()).mode()), expected, atol=1e-5, rtol=1e-4
    )


def test_latents_are_shifted_then_scaled():
    plain, shifted = build(), build(shift=0.5, scale=[1.0, 2.0, 3.0, 4.0])
    scale = torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None]
    torch.testing.assert_close(
        shifted.encode(images()).mean, (plain.encode(images()).mean - 0.5) * scale, atol=1e-5, rtol=1e-4
    )


def test_std_of_the_posterior_is_scaled_with_the_latents():
    assert (build(scale=2.0).encode(images()).std == 1.0).all()


def test_fitted_latents_have_zero_mean_and_unit_variance():
    autoencoder = build(scale=1.7, shift=0.3)
    for _ in range(2):  # fitting again, from latents that are normalised already, must be as good
        latents = autoencoder.encode(images()).mean.detach()
        autoencoder.fit_normalization(latents.mean((0, 2, 3)), latents.std((0, 2, 3)))
    latents = autoencoder.encode(images()).mean
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-5, rtol=0)


def test_fitting_does_not_change_the_reconstruction():
    autoencoder = build()
    before = autoencoder.decode(autoencoder.encode(images()).mode())
    autoencoder.fit_normalization(torch.tensor([0.1, -0.2, 0.3, 0.0]), torch.tensor([0.5, 2.0, 1.0, 3.0]))
    after = autoencoder.decode(autoencoder.encode(images()).mode())
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("std", [0.0, float("nan"), -1.0])
def test_dead_channels_are_refused(std):
    with pytest.raises(ShapeError, match="dead"):
        build().fit_normalization(torch.zeros(4), torch.full((4,), std))


def test_decoder_only_gives_the_encoder_no_gradient():
    autoencoder = build(trainable="decoder", uses_quant_conv=True)
    autoencoder.decode(autoencoder.encode(images()).sample()).square().mean().backward()
    with_gradient = {name.split(".")[1] for name, p in autoencoder.named_parameters() if p.grad is not None}
    assert with_gradient == {"decoder", "post_quant_conv"}


def test_nothing_trainable_gives_no_gradient():
    autoencoder = build(trainable="none")
    assert not autoencoder.decode(autoencoder.encode(images()).sample()).requires_grad


@pytest.mark.parametrize(("trainable", "modes"), [("full", (1, 1)), ("decoder", (0, 1)), ("none", (0, 0))])
def test_frozen_parts_stay_in_evaluation_mode(trainable, modes):
    network = build(trainable=trainable).train().network
    assert (network.encoder.training, network.decoder.training) == modes


def test_last_layer_returns_the_pixels():
    layer = build().last_layer()
    assert (layer.shape[0], layer.requires_grad) == (3, True)


def test_image_size_that_the_factor_does_not_divide_is_refused():
    with pytest.raises(ShapeError, match="multiples of the autoencoder's factor 2"):
        build().encode(images(9))


def test_latents_with_other_channels_are_refused():
    with pytest.raises(ShapeError, match=r"\(1, 3, 4, 4\)"):
        build().decode(torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 3, "widths": None}, "not a power of two"),
        ({"factor": 4}, "give 3 widths"),
        ({"factor": 128, "widths": None}, "no default widths"),
        ({"norm_num_groups": 3}, "does not divide the width 8"),
        ({"attention_levels": [2]}, "no level 2"),
        ({"scale": [1.0, 2.0]}, "one per latent channel"),
        ({"scale": -1.0}, "above 0"),
        ({"subfolder": "vae"}, "no effect without `pretrained`"),
        ({"posterior": {"name": "fixed", "std": [0.1, 0.2]}}, "2 numbers for 4"),
    ],
)
def test_clashing_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        build(**options)


def test_unknown_option_is_refused():
    with pytest.raises(ValidationError, match="latent_chanels"):
        KLOptions.model_validate({"latent_chanels": 4})


@pytest.mark.parametrize("name", NAMES)
def test_own_checkpoint_restores_every_tensor(name, tmp_path):
    trained = build(posterior=name, scale=2.0, shift=0.5)
    save_file({f"joint.{k}": v for k, v in trained.state_dict().items()}, tmp_path / "a.safetensors")
    fresh = build(seed=1, posterior=name, pretrained=str(tmp_path / "a.safetensors"))
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in trained.state_dict().items())


def test_own_checkpoint_builds_the_same_network(tmp_path):
    trained = build(attention_levels=[0], uses_mid_attention=False, uses_quant_conv=True, scale=2.0)
    save_file(trained.state_dict(), tmp_path / "a.safetensors")
    again = KLAutoencoder(KLOptions(pretrained=str(tmp_path / "a.safetensors"), pretrained_format="simflow"))
    assert torch.equal(again.encode(images()).mean, trained.encode(images()).mean)


@pytest.mark.parametrize("uses_quant_conv", [False, True])
def test_fixed_head_on_a_learnable_encoder_keeps_its_mean(uses_quant_conv, tmp_path):
    learnable = build(posterior="learnable", uses_quant_conv=uses_quant_conv)
    save_file(learnable.state_dict(), tmp_path / "a.safetensors")
    fixed = KLAutoencoder(KLOptions(pretrained=str(tmp_path / "a.safetensors"), posterior="fixed"))
    torch.testing.assert_close(
        fixed.encode(images()).mean, learnable.encode(images()).mean, atol=1e-5, rtol=1e-4
    )


def test_learnable_head_on_a_fixed_encoder_is_refused(tmp_path):
    save_file(build().state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(
        WeightsError, match=r"a\.safetensors: .*returns 4 channels, but LearnedVarianceHead reads 8"
    ):
        KLAutoencoder(KLOptions(pretrained=str(tmp_path / "a.safetensors"), posterior="learnable"))


def test_self_contained_options_rebuild_the_network(tmp_path):
    source = build(posterior="learnable", uses_quant_conv=True, attention_levels=[1])
    save_file(source.state_dict(), tmp_path / "a.safetensors")
    loaded = KLAutoencoder(KLOptions(pretrained=str(tmp_path / "a.safetensors"), trainable="decoder"))
    (tmp_path / "a.safetensors").unlink()
    rebuilt = KLAutoencoder(KLOptions.model_validate(loaded.self_contained_options()))
    rebuilt.load_state_dict(loaded.state_dict())
    assert torch.equal(rebuilt.encode(images()).mean, loaded.encode(images()).mean)


def test_two_steps_change_every_trained_weight_and_no_frozen_one():
    autoencoder = build(trainable="decoder")
    before = {name: p.detach().clone() for name, p in autoencoder.named_parameters()}
    optimizer = torch.optim.SGD([p for p in autoencoder.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (autoencoder.decode(autoencoder.encode(images()).sample()) - images()).square().mean().backward()
        optimizer.step()
    same = {name for name, p in autoencoder.named_parameters() if torch.equal(p, before[name])}
    # The key's bias shifts all attention logits alike, so that softmax ignores it.
    assert same - {"network.decoder.mid_block.attentions.0.to_k.bias"} == {
        n for n in before if ".encoder." in n
    }
