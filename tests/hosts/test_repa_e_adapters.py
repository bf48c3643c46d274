"""The adapters keep what the REPA-E host expects of a model, of an autoencoder and of a sampler."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from simflow_plugin.errors import HostError
from simflow_plugin.hosts import repa_e_adapters as repa_e
from simflow_plugin.hosts.hosted_flow import FlowKind
from simflow_plugin.hosts.repa_e_adapters import RepaEFlow, sample

TINY = (("width", 16), ("layers_per_block", (1, 2)), ("head_dim", 8))
ARGUMENTS = {
    "input_size": 4,
    "in_channels": 4,
    "num_classes": 10,
    "class_dropout_prob": 0.1,
    "z_dims": [6],
    "encoder_depth": 2,
    "bn_momentum": 0.1,
    "fused_attn": True,
    "qk_norm": False,
}
KEYS = {"zs_tilde", "model_output", "denoising_loss", "proj_loss", "time_input", "noises"}
FAMILIES = ["SimFlow", "STARFlow"]


def make(family="SimFlow", coefficient=1.5, **changes) -> RepaEFlow:
    """Return a tiny model whose flow is not the identity, told of the run as the patched script does."""
    torch.manual_seed(0)
    model = RepaEFlow(FlowKind(family, "S", 2, TINY), **{**ARGUMENTS, **changes})
    for parameter in model.core.flow.parameters():
        nn.init.normal_(parameter, std=0.1)
    rate = 0.0 if family == "STARFlow" else 1e-4
    model.use_host_options(
        SimpleNamespace(vae_align_proj_coeff=coefficient, vae="f8d4-fixedvar", vae_learning_rate=rate)
    )
    return model


def batch():
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn((3, 4, 4, 4), generator=generator) * 2 + 1
    features = torch.randn((3, 16, 6), generator=generator)
    return latents, torch.tensor([0, 5, 9]), [features]


def call(model, latents, align_only, **state):
    _, labels, features = batch()
    return model(x=latents, y=labels, zs=features, loss_kwargs={"align_only": align_only}, **state)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("align_only", [True, False])
def test_both_calls_return_the_hosts_keys(family, align_only):
    assert call(make(family), batch()[0], align_only).keys() == KEYS


@pytest.mark.parametrize("family", FAMILIES)
def test_the_second_call_returns_losses_in_the_hosts_shapes(family):
    result = call(make(family), batch()[0], align_only=False)
    assert result["denoising_loss"].shape == (3,)
    assert result["proj_loss"].shape == ()
    assert result["model_output"].shape == (3, 4, 4, 4)
    assert [tokens.shape for tokens in result["zs_tilde"]] == [(3, 4, 6)]
    assert (result["time_input"].shape, result["noises"].shape) == ((3, 1, 1, 1), (3, 4, 4, 4))


@pytest.mark.parametrize("family", FAMILIES)
def test_random_state_survives_being_passed_back(family):
    model = make(family, class_dropout_prob=0.5).train()
    latents = batch()[0]
    first = call(model, latents, align_only=True)
    state = {"time_input": first["time_input"], "noises": first["noises"]}
    once, twice = (call(model, latents, align_only=False, **state) for _ in range(2))
    assert torch.equal(once["denoising_loss"], twice["denoising_loss"])
    assert torch.equal(once["noises"], first["noises"])


def test_in_the_first_call_likelihood_and_alignment_reach_the_latents():
    model = make(coefficient=3.0).eval().requires_grad_(False)
    latents = batch()[0].requires_grad_()
    result = call(model, latents, align_only=True)
    (total,) = torch.autograd.grad(3.0 * result["proj_loss"], latents)
    second = call(model, latents, align_only=False)
    (nll,) = torch.autograd.grad(second["denoising_loss"].mean(), latents, retain_graph=True)
    (alignment,) = torch.autograd.grad(second["proj_loss"], latents)
    assert nll.abs().sum() > 0
    assert alignment.abs().sum() > 0
    torch.testing.assert_close(total, nll + 3.0 * alignment)


def test_the_hosts_coefficient_does_not_scale_the_likelihood():
    latents, small, large = batch()[0], 0.5, 2.0
    losses = []
    for coefficient in (small, large):
        model = make(coefficient=coefficient).eval()
        alignment = call(model, latents, align_only=False)["proj_loss"]
        losses.append(coefficient * (call(model, latents, align_only=True)["proj_loss"] - alignment))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-5)  # a difference of two losses


def test_in_the_second_call_every_parameter_of_the_model_learns():
    model = make().train()
    result = call(model, batch()[0], align_only=False)
    (result["denoising_loss"].mean() + 0.5 * result["proj_loss"]).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_nothing_of_starflow_reaches_the_latents_in_the_first_call():
    result = call(make("STARFlow"), batch()[0].requires_grad_(), align_only=True)
    assert result["proj_loss"].item() == 0
    assert not result["proj_loss"].requires_grad


def test_batch_norm_statistics_move_in_training_only():
    model = make()
    start = model.bn.running_mean.clone()
    call(model.eval(), batch()[0], align_only=True)
    assert torch.equal(model.bn.running_mean, start)
    call(model.train(), batch()[0], align_only=False)
    assert not torch.equal(model.bn.running_mean, start)


def test_latent_statistics_round_trip():
    model = make()
    scale, bias = torch.tensor([0.5, 1.0, 2.0, 4.0]), torch.arange(4.0)
    model.init_bn(latents_scale=scale, latents_bias=bias)
    statistics = model.extract_latents_stats()
    torch.testing.assert_close(statistics["latents_scale"], scale)
    torch.testing.assert_close(statistics["latents_bias"], bias)


def test_initial_statistics_are_not_shared_with_the_caller():
    model, bias = make(), torch.zeros(4)
    model.init_bn(latents_scale=torch.ones(4), latents_bias=bias)
    call(model.train(), batch()[0], align_only=False)
    assert torch.equal(bias, torch.zeros(4))


def test_the_state_dict_holds_the_statistics_that_generate_reads():
    assert {"bn.running_mean", "bn.running_var"} <= make().state_dict().keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_state_dict_round_trip_samples_the_same(family):
    model, other = make(family), RepaEFlow(FlowKind(family, "S", 2, TINY), **ARGUMENTS)
    other.load_state_dict(model.state_dict())
    noise, labels = torch.randn(2, 4, 4, 4), torch.tensor([1, 2])
    assert torch.equal(
        sample(model, noise, labels, cfg_scale=2.0), sample(other, noise, labels, cfg_scale=2.0)
    )


def test_a_deep_copy_is_independent_and_has_the_same_names():
    model = make()
    ema = copy.deepcopy(model)
    assert [name for name, _ in ema.named_parameters()] == [name for name, _ in model.named_parameters()]
    with torch.no_grad():
        next(model.parameters()).add_(1)
    assert not torch.equal(next(model.parameters()), next(ema.parameters()))


def test_sync_batch_norm_conversion_keeps_the_state_dicts_keys():
    model = make()
    keys = model.state_dict().keys()
    assert nn.SyncBatchNorm.convert_sync_batchnorm(model).state_dict().keys() == keys


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_stay_float32_under_autocast(dtype):
    model = make().train()
    with torch.autocast("cpu", dtype=dtype):
        result = call(model, batch()[0], align_only=False)
    assert result["denoising_loss"].dtype == torch.float32
    exact = call(model, batch()[0], align_only=False, time_input=result["time_input"])["denoising_loss"]
    torch.testing.assert_close(result["denoising_loss"], exact, rtol=0.02, atol=0.02)


def test_sampling_inverts_the_likelihoods_map():
    model = make().eval()
    latents, labels, _ = batch()
    noise = call(model, latents, align_only=False)["model_output"].detach()
    recovered = sample(model, noise, labels, cfg_scale=1.0)
    torch.testing.assert_close(recovered, model.bn(latents), rtol=1e-4, atol=1e-4)


def test_cfg_scale_one_is_no_guidance_and_two_is_weight_one():
    model = make().eval()
    noise, labels = torch.randn(2, 4, 4, 4), torch.tensor([1, 2])
    tokens = model.core.flow.inverse(model.core.tokens(noise), labels, guidance=1.0)
    assert torch.equal(sample(model, noise, labels, cfg_scale=2.0), model.core.latents(tokens))


def test_the_hosts_null_label_is_the_unconditional_model():
    model = make().eval()
    noise = torch.randn(2, 4, 4, 4)
    tokens = model.core.flow.inverse(model.core.tokens(noise), None)
    assert torch.equal(sample(model, noise, torch.tensor([10, 10])), model.core.latents(tokens))


def test_starflow_samples_inside_no_grad():
    with torch.no_grad():
        assert sample(make("STARFlow"), torch.randn(2, 4, 4, 4), torch.tensor([1, 2])).isfinite().all()


def test_guidance_without_label_dropout_is_left_out_with_a_warning():
    model = make(class_dropout_prob=0.0)
    noise, labels = torch.randn(2, 4, 4, 4), torch.tensor([1, 2])
    with pytest.warns(UserWarning, match="without guidance"):
        guided = sample(model, noise, labels, cfg_scale=4.0)
    assert torch.equal(guided, sample(model, noise, labels))


@pytest.mark.parametrize(
    "options", [{"heun": True}, {"guidance_low": 0.1}, {"guidance_high": 0.9}, {"cfg_scale": 0.5}]
)
def test_sampler_options_without_effect_are_refused(options):
    with pytest.raises(HostError):
        sample(make(), torch.randn(1, 4, 4, 4), torch.tensor([1]), **options)


def test_the_unpatched_sampler_is_told_to_patch():
    with pytest.raises(HostError, match="simflow patch repa-e"):
        make().inference(torch.randn(1, 4, 4, 4), torch.ones(1), torch.tensor([1]))


def test_an_unpatched_training_script_is_told_to_patch():
    model = RepaEFlow(FlowKind("SimFlow", "S", 2, TINY), **ARGUMENTS)
    with pytest.raises(HostError, match="simflow patch repa-e"):
        call(model, batch()[0], align_only=True)


def test_a_coefficient_of_zero_is_refused():
    with pytest.raises(HostError, match="--vae-align-proj-coeff 0"):
        make(coefficient=0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_size": 5}, "another patch size"),
        ({"encoder_depth": 3}, "--encoder-depth"),
        ({"encoder_depth": 0}, "2 layers"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(HostError, match=message):
        make(**changes)


def test_every_named_model_fits_the_hosts_default_encoder_depth():
    models = {}
    repa_e.add_models(models)
    sizes = {family: ("S", "B", "L", "XL", "XXL") for family in FAMILIES}
    sizes["SimFlow"] += ("simflow-l", "simflow-xxl")
    assert set(models) == {f"{f}-{s}/{p}" for f in FAMILIES for s in sizes[f] for p in (1, 2)}
    with torch.device("meta"):
        for factory in models.values():
            assert factory(**{**ARGUMENTS, "encoder_depth": 8}).in_channels == 4


def test_the_hosts_own_entries_are_never_replaced():
    models = {"SimFlow-S/1": "host"}
    repa_e.add_models(models)
    assert models["SimFlow-S/1"] == "host"


def test_compiled_model_samples_through_its_original():
    model = make().eval()
    noise, labels = torch.randn(1, 4, 4, 4), torch.tensor([1])
    assert torch.equal(sample(SimpleNamespace(_orig_mod=model), noise, labels), sample(model, noise, labels))
