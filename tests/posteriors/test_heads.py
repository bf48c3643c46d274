"""Heads give the posterior that their name promises, and refuse what cannot be one."""

import pytest
import torch
from pydantic import ValidationError

from simflow_plugin.errors import ConfigError, ShapeError
from simflow_plugin.posteriors.heads import (
    FixedVarianceHead,
    FixedVarianceLayerNormHead,
    LearnedVarianceHead,
    PosteriorOptions,
    build_head,
)

KINDS = ["fixed", "learnable", "fixed_layernorm"]


def moments(channels: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(2, channels, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(
        dtype
    )


@pytest.mark.parametrize("kind", KINDS)
def test_heads_have_no_parameters(kind):
    assert not list(build_head(PosteriorOptions(kind=kind), 4).parameters())


@pytest.mark.parametrize(("kind", "num_moments"), [("fixed", 4), ("learnable", 8), ("fixed_layernorm", 4)])
def test_only_a_learned_variance_needs_variance_channels(kind, num_moments):
    assert build_head(PosteriorOptions(kind=kind), 4).num_moments == num_moments


@pytest.mark.parametrize("kind", KINDS)
def test_posteriors_say_whether_the_variance_is_learned(kind):
    head = build_head(PosteriorOptions(kind=kind), 4)
    assert head(moments(head.num_moments)).learns_variance == (kind == "learnable")


def test_fixed_mean_is_the_encoder_output():
    assert torch.equal(FixedVarianceHead(4, 0.3)(moments(4)).mean, moments(4))


def test_std_by_channel_reaches_its_channel():
    posterior = FixedVarianceHead(3, [0.1, 0.2, 0.3])(moments(3))
    expected = torch.tensor([0.1, 0.2, 0.3])[:, None, None].expand(2, 3, 3, 3)
    torch.testing.assert_close(posterior.std, expected.double())


def test_default_std_is_a_half():
    assert (build_head(PosteriorOptions(), 4)(moments(4)).std == 0.5).all()


def test_layer_norm_matches_torch_over_channels():
    expected = torch.nn.functional.layer_norm(moments(8).movedim(1, -1), (8,), eps=1e-6).movedim(-1, 1)
    torch.testing.assert_close(FixedVarianceLayerNormHead(8)(moments(8)).mean, expected)


def test_layer_norm_fixes_the_size_of_the_mean():
    mean = FixedVarianceLayerNormHead(8)(1e3 * moments(8)).mean
    torch.testing.assert_close(mean.square().sum(1), torch.full((2, 3, 3), 8.0).double())


def test_log_variance_is_clamped():
    extreme = torch.cat([torch.zeros(1, 2, 1, 1), torch.tensor([-100.0, 100.0])[None, :, None, None]], dim=1)
    log_variance = LearnedVarianceHead(2)(extreme).log_variance.flatten()
    assert log_variance.tolist() == [-30.0, 20.0]


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_moments_give_float32_posteriors(kind):
    head = build_head(PosteriorOptions(kind=kind), 4)
    posterior = head(moments(head.num_moments, torch.bfloat16))
    assert {posterior.mean.dtype, posterior.std.dtype, posterior.kl().dtype} == {torch.float32}


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan"), float("inf")])
def test_std_that_is_not_positive_is_refused(std):
    with pytest.raises(ConfigError, match="sigma > 0"):
        FixedVarianceHead(4, std)


@pytest.mark.parametrize("std", [0, -0.5, [0.5, 0.0]])
def test_options_refuse_std_that_is_not_positive(std):
    with pytest.raises(ValidationError, match="greater than 0"):
        PosteriorOptions(std=std)


def test_std_of_another_length_is_refused():
    with pytest.raises(ConfigError, match="2 numbers for 4 latent channels"):
        FixedVarianceHead(4, [0.1, 0.2])


def test_std_without_effect_is_refused():
    with pytest.raises(ValidationError, match="no effect"):
        PosteriorOptions(kind="learnable", std=0.5)


def test_layer_norm_over_too_few_channels_is_refused():
    with pytest.raises(ConfigError, match="at least 3"):
        FixedVarianceLayerNormHead(2)


def test_moments_with_other_channels_are_refused():
    with pytest.raises(ShapeError, match=r"\(2, 8, 3, 3\).*\(B, 4, h, w\)"):
        FixedVarianceHead(4)(moments(8))


def test_added_noise_adds_its_variance_to_the_learned_one():
    moments = torch.randn(2, 8, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    clean = build_head(PosteriorOptions.model_validate({"kind": "learnable"}), 4)(moments)
    noisy = build_head(PosteriorOptions.model_validate({"kind": "learnable", "noise_std": 0.5}), 4)(moments)
    torch.testing.assert_close(noisy.std.square(), clean.std.square() + 0.25)
    torch.testing.assert_close(noisy.mean, clean.mean)


def test_noise_of_a_fixed_posterior_is_refused():
    with pytest.raises(ValueError, match="noise_std has no effect with kind `fixed`"):
        PosteriorOptions.model_validate({"kind": "fixed", "noise_std": 0.5})
