"""Heads give the posterior that their name promises, and refuse what cannot be one."""

import pytest
import torch
from pydantic import ValidationError

from simflow_plugin.contracts import PosteriorContext
from simflow_plugin.errors import ConfigError, ShapeError, WeightsError
from simflow_plugin.posteriors.fixed import FixedVarianceHead
from simflow_plugin.posteriors.learnable import NoisyVarianceHead
from simflow_plugin.registry import POSTERIORS, Part

NAMES = ["fixed", "learnable", "fixed_layernorm", "learnable_noise"]
LEARNED = ["learnable", "learnable_noise"]


def build(name, channels=4, **options):
    if name == "learnable_noise":
        options.setdefault("noise_std", 0.5)
    return Part.model_validate({"name": name, **options}).build(POSTERIORS, PosteriorContext(channels))


def moments(channels: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(2, channels, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(
        dtype
    )


@pytest.mark.parametrize("name", NAMES)
def test_heads_have_no_parameters(name):
    assert not list(build(name).parameters())


@pytest.mark.parametrize("name", NAMES)
def test_only_a_learned_variance_needs_variance_channels(name):
    assert build(name).num_moments == (8 if name in LEARNED else 4)


@pytest.mark.parametrize("name", NAMES)
def test_head_and_posterior_agree_on_whether_the_variance_is_learned(name):
    head = build(name)
    assert head(moments(head.num_moments)).learns_variance == head.learns_variance == (name in LEARNED)


def test_fixed_mean_is_the_encoder_output():
    assert torch.equal(build("fixed", std=0.3)(moments(4)).mean, moments(4))


def test_std_by_channel_reaches_its_channel():
    posterior = build("fixed", 3, std=[0.1, 0.2, 0.3])(moments(3))
    expected = torch.tensor([0.1, 0.2, 0.3])[:, None, None].expand(2, 3, 3, 3)
    torch.testing.assert_close(posterior.std, expected.double())


def test_default_std_is_a_half():
    assert (build("fixed")(moments(4)).std == 0.5).all()


def test_layer_norm_matches_torch_over_channels():
    expected = torch.nn.functional.layer_norm(moments(8).movedim(1, -1), (8,), eps=1e-6).movedim(-1, 1)
    torch.testing.assert_close(build("fixed_layernorm", 8)(moments(8)).mean, expected)


def test_layer_norm_fixes_the_size_of_the_mean():
    mean = build("fixed_layernorm", 8)(1e3 * moments(8)).mean
    torch.testing.assert_close(mean.square().sum(1), torch.full((2, 3, 3), 8.0).double())


def test_log_variance_is_clamped():
    extreme = torch.cat([torch.zeros(1, 2, 1, 1), torch.tensor([-100.0, 100.0])[None, :, None, None]], dim=1)
    assert build("learnable", 2)(extreme).log_variance.flatten().tolist() == [-30.0, 20.0]


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_moments_give_float32_posteriors(name):
    head = build(name)
    posterior = head(moments(head.num_moments, torch.bfloat16))
    assert {posterior.mean.dtype, posterior.std.dtype, posterior.kl().dtype} == {torch.float32}


@pytest.mark.parametrize("std", [0, -0.5, [0.5, 0.0], float("nan"), float("inf")])
def test_std_that_is_not_positive_is_refused(std):
    with pytest.raises(ValidationError, match=r"greater than 0|finite"):
        FixedVarianceHead.Options(std=std)


def test_std_of_another_length_is_refused():
    with pytest.raises(ConfigError, match="2 numbers for 4 latent channels"):
        build("fixed", std=[0.1, 0.2])


@pytest.mark.parametrize(("name", "option"), [("learnable", "std"), ("fixed", "noise_std")])
def test_an_option_of_another_posterior_is_refused(name, option):
    with pytest.raises(ConfigError, match=option):
        build(name, **{option: 0.5})


def test_layer_norm_over_too_few_channels_is_refused():
    with pytest.raises(ConfigError, match="at least 3"):
        build("fixed_layernorm", 2)


def test_moments_with_other_channels_are_refused():
    with pytest.raises(ShapeError, match=r"\(2, 8, 3, 3\).*\(B, 4, h, w\)"):
        build("fixed")(moments(8))


def test_added_noise_adds_its_variance_to_the_learned_one():
    clean, noisy = build("learnable")(moments(8)), build("learnable_noise", noise_std=0.5)(moments(8))
    torch.testing.assert_close(noisy.std.square(), clean.std.square() + 0.25)
    torch.testing.assert_close(noisy.mean, clean.mean)


@pytest.mark.parametrize("std", [0, -1, float("nan")])
def test_noise_must_be_positive(std):
    with pytest.raises(ValidationError, match="noise_std"):
        NoisyVarianceHead.Options(noise_std=std)


@pytest.mark.parametrize(("name", "found", "kept"), [("fixed", 8, 4), ("fixed", 4, 4), ("learnable", 8, 8)])
def test_outputs_kept_of_a_pretrained_encoder(name, found, kept):
    assert build(name).kept_moments(found) == kept


def test_learned_variance_cannot_start_from_means_alone():
    with pytest.raises(WeightsError, match="returns 4 channels, but LearnedVarianceHead reads 8"):
        build("learnable").kept_moments(4)


@pytest.mark.parametrize(("name", "options"), [("fixed", {"std": [0.1, 0.2, 0.3, 0.4]}), ("learnable", {})])
def test_moments_for_export_say_the_same_posterior(name, options):
    head = build(name, **options)
    weight, bias = head.as_moments()
    found = torch.einsum("om,bmhw->bohw", weight.double(), moments(head.num_moments)) + bias[:, None, None]
    mean, log_variance = found.chunk(2, dim=1)
    expected = head(moments(head.num_moments))
    torch.testing.assert_close(mean, expected.mean)
    torch.testing.assert_close(torch.exp(0.5 * log_variance), expected.std, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["fixed_layernorm", "learnable_noise"])
def test_posterior_that_diffusers_cannot_express_says_so(name):
    with pytest.raises(WeightsError, match=rf"{name}.*\.safetensors"):
        build(name).as_moments()
