"""The adapters keep what the REPA-E host expects of a model, of an autoencoder and of a sampler."""

from __future__ import annotations

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
FAMILIES = ["SimFlow", "STARFlow"]
both_families = pytest.mark.parametrize("family", FAMILIES)


def unpatched(family="SimFlow", **changes) -> RepaEFlow:
    """Return a tiny model whose flow is not the identity, not told of the run."""
    torch.manual_seed(0)
    model = RepaEFlow(FlowKind(family, "S", 2, TINY), **{**ARGUMENTS, **changes})
    for parameter in model.core.flow.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def make(family="SimFlow", coefficient=1.5, **changes) -> RepaEFlow:
    """Return such a model, told of the run as the patched script does."""
    model = unpatched(family, **changes)
    rate = 0.0 if family == "STARFlow" else 1e-4
    model.use_host_options(
        SimpleNamespace(vae_align_proj_coeff=coefficient, vae="f8d4-fixedvar", vae_learning_rate=rate)
    )
    return model


def some_latents():
    return torch.randn((3, 4, 4, 4), generator=torch.Generator().manual_seed(2)) * 2 + 1


def call(model, align_only, latents=None, **state):
    features = torch.randn((3, 16, 6), generator=torch.Generator().manual_seed(3))
    return model(
        x=some_latents() if latents is None else latents,
        y=torch.tensor([0, 5, 9]),
        zs=[features],
        loss_kwargs={"align_only": align_only},
        **state,
    )


def draw(model, labels=(1, 2), **options):
    noise = torch.randn(len(labels), 4, 4, 4, generator=torch.Generator().manual_seed(4))
    return sample(model, noise, torch.tensor(labels), **options)


@both_families
def test_both_calls_return_the_hosts_keys_and_shapes(family):
    first, second = (call(make(family), align_only) for align_only in (True, False))
    keys = {"zs_tilde", "model_output", "denoising_loss", "proj_loss", "time_input", "noises"}
    assert first.keys() == second.keys() == keys
    assert second["denoising_loss"].shape == (3,)
    assert second["proj_loss"].shape == ()
    assert second["model_output"].shape == (3, 4, 4, 4)
    assert [tokens.shape for tokens in second["zs_tilde"]] == [(3, 4, 6)]
    assert (second["time_input"].shape, second["noises"].shape) == ((3, 1, 1, 1), (3, 4, 4, 4))


@both_families
def test_random_state_survives_being_passed_back(family):
    model = make(family, class_dropout_prob=0.5).train()
    first = call(model, align_only=True)
    state = {"time_input": first["time_input"], "noises": first["noises"]}
    once, twice = (call(model, align_only=False, **state) for _ in range(2))
    assert torch.equal(once["denoising_loss"], twice["denoising_loss"])
    assert torch.equal(once["noises"], first["noises"])


def test_in_the_first_call_likelihood_and_alignment_reach_the_latents():
    model = make(coefficient=3.0).eval().requires_grad_(False)
    latents = some_latents().requires_grad_()
    (total,) = torch.autograd.grad(3.0 * call(model, True, latents)["proj_loss"], latents)
    second = call(model, False, latents)
    (nll,) = torch.autograd.grad(second["denoising_loss"].mean(), latents, retain_graph=True)
    (alignment,) = torch.autograd.grad(second["proj_loss"], latents)
    assert nll.abs().sum() > 0
    assert alignment.abs().sum() > 0
    torch.testing.assert_close(total, nll + 3.0 * alignment)


def test_the_hosts_coefficient_does_not_scale_the_likelihood():
    losses = []
    for coefficient in (0.5, 2.0):
        model = make(coefficient=coefficient).eval()
        alignment = call(model, align_only=False)["proj_loss"]
        losses.append(coefficient * (call(model, align_only=True)["proj_loss"] - alignment))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-5)  # a difference of two losses


def test_in_the_second_call_every_parameter_of_the_model_learns():
    model = make().train()
    result = call(model, align_only=False)
    (result["denoising_loss"].mean() + 0.5 * result["proj_loss"]).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_nothing_of_starflow_reaches_the_latents_in_the_first_call():
    result = call(make("STARFlow"), True, some_latents().requires_grad_())
    assert result["proj_loss"].item() == 0
    assert not result["proj_loss"].requires_grad


def test_batch_norm_statistics_move_in_training_only():
    model, scale, bias = make(), torch.tensor([0.5, 1.0, 2.0, 4.0]), torch.arange(4.0)
    model.init_bn(latents_scale=scale, latents_bias=bias)
    call(model.eval(), align_only=True)
    statistics = model.extract_latents_stats()
    torch.testing.assert_close(statistics["latents_scale"], scale)
    torch.testing.assert_close(statistics["latents_bias"], bias)
    call(model.train(), align_only=False)
    assert not torch.equal(model.bn.running_mean, bias)
    assert torch.equal(bias, torch.arange(4.0))  # the caller's tensor is not shared


@both_families
def test_a_state_dict_round_trip_samples_the_same(family):
    model, other = make(family), RepaEFlow(FlowKind(family, "S", 2, TINY), **ARGUMENTS)
    assert {"bn.running_mean", "bn.running_var"} <= model.state_dict().keys()  # which generate.py reads
    other.load_state_dict(model.state_dict())
    assert torch.equal(draw(model, cfg_scale=2.0), draw(other, cfg_scale=2.0))


def test_sync_batch_norm_conversion_keeps_the_state_dicts_keys():
    model = make()
    keys = model.state_dict().keys()
    assert nn.SyncBatchNorm.convert_sync_batchnorm(model).state_dict().keys() == keys


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_stay_float32_under_autocast(dtype):
    model = make().train()
    with torch.autocast("cpu", dtype=dtype):
        result = call(model, align_only=False)
    assert result["denoising_loss"].dtype == torch.float32
    exact = call(model, align_only=False, time_input=result["time_input"])["denoising_loss"]
    torch.testing.assert_close(result["denoising_loss"], exact, rtol=0.02, atol=0.02)


def test_sampling_inverts_the_likelihoods_map():
    model = make().eval()
    noise = call(model, align_only=False)["model_output"].detach()
    recovered = sample(model, noise, torch.tensor([0, 5, 9]), cfg_scale=1.0)
    torch.testing.assert_close(recovered, model.bn(some_latents()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("labels", "cfg_scale", "known", "guidance"),
    [([1, 2], 1.0, [1, 2], 0.0), ([1, 2], 2.0, [1, 2], 1.0), ([10, 10], 1.0, None, 0.0)],
    ids=["no guidance", "weight one", "null label"],
)
def test_labels_and_cfg_scale_are_the_hosts(labels, cfg_scale, known, guidance):
    model = make().eval()
    noise = torch.randn(2, 4, 4, 4)
    known = None if known is None else torch.tensor(known)
    tokens = model.core.flow.inverse(model.core.tokens(noise), known, guidance=guidance)
    found = sample(model, noise, torch.tensor(labels), cfg_scale=cfg_scale)
    assert torch.equal(found, model.core.latents(tokens))


def test_guidance_without_label_dropout_is_left_out_with_a_warning():
    model = make(class_dropout_prob=0.0)
    with pytest.warns(UserWarning, match="without guidance"):
        guided = draw(model, cfg_scale=4.0)
    assert torch.equal(guided, draw(model))


@pytest.mark.parametrize("wrapper", ["module", "_orig_mod"])
def test_a_wrapped_model_samples_through_its_original(wrapper):
    model = make().eval()
    assert torch.equal(draw(SimpleNamespace(**{wrapper: model})), draw(model))


@pytest.mark.parametrize(
    "options", [{"heun": True}, {"guidance_low": 0.1}, {"guidance_high": 0.9}, {"cfg_scale": 0.5}]
)
def test_sampler_options_without_effect_are_refused(options):
    with pytest.raises(HostError):
        draw(make(), **options)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: make().inference(some_latents(), torch.ones(3), None), "simflow patch repa-e"),
        (lambda: call(unpatched(), align_only=True), "simflow patch repa-e"),
        (lambda: make(coefficient=0.0), "--vae-align-proj-coeff 0"),
        (lambda: make(input_size=5), "another patch size"),
        (lambda: make(encoder_depth=3), "--encoder-depth"),
        (lambda: make(encoder_depth=0), "2 layers"),
    ],
    ids=["sampler", "loop", "coefficient", "grid", "too deep", "no layer"],
)
def test_an_unpatched_host_and_arguments_that_do_not_fit_are_refused(mistake, message):
    with pytest.raises(HostError, match=message):
        mistake()


def test_every_named_model_fits_the_hosts_default_encoder_depth():
    models = {"SimFlow-S/1": "host"}
    repa_e.add_models(models)
    assert models.pop("SimFlow-S/1") == "host"  # the host's own entries are never replaced
    sizes = {family: ("S", "B", "L", "XL", "XXL") for family in FAMILIES}
    sizes["SimFlow"] += ("simflow-l", "simflow-xxl")
    assert {*models, "SimFlow-S/1"} == {f"{f}-{s}/{p}" for f in FAMILIES for s in sizes[f] for p in (1, 2)}
    with torch.device("meta"):
        for factory in models.values():
            assert factory(**{**ARGUMENTS, "encoder_depth": 8}).in_channels == 4
