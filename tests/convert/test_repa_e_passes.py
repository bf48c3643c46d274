"""REPA-E with SiT moves autoencoder and model as the host's own step does: on its numbers and on its code."""

from typing import Any

import pytest
import torch
from torch import Tensor

from simflow_plugin.contracts import AlignmentContext, ModelContext
from simflow_plugin.convert.from_repa_e import RULES, RepaEArguments, describe_repa_e, from_repa_e
from simflow_plugin.convert.renaming import convert_tensors
from tests.convert.peers import import_from, read_parts
from tests.convert.repa_e_passes import KEPT, host_step, our_step
from tests.convert.test_from_repa_e import INPUTS, LABELS, OUTPUTS, both_interpolants, convert, randomize

TOLERANCE = 1e-5
"""Of gradients, to the largest element."""
GRADIENTS = read_parts("repa_e_passes")[1]
"""By interpolant, then `latents` or the host's name of a parameter."""


def our_gradients(interpolant: str, dropped: Tensor | None = None, **options: Any):
    model = convert(interpolant=interpolant, **options)
    return our_step(model, INPUTS, LABELS, dropped)


def relative_error(ours: Tensor, host: Tensor) -> float:
    return float((ours - host).abs().max() / host.abs().max())


@both_interpolants
def test_gradient_that_moves_the_autoencoder_equals_the_hosts(interpolant):
    ours, _ = our_gradients(interpolant)
    assert relative_error(ours, GRADIENTS[interpolant]["latents"]) < TOLERANCE


def test_label_dropout_does_not_touch_the_gradient_that_moves_the_autoencoder():
    everything = torch.ones(4, dtype=torch.bool)
    ours, of_model = our_gradients("linear", dropped=everything)
    assert relative_error(ours, GRADIENTS["linear"]["latents"]) < TOLERANCE
    table = of_model["backbone.label_embed.table.weight"]
    assert table[:-1].abs().max() == 0  # the model's own pass did drop them
    assert table[-1].abs().max() > 0


def test_the_models_own_pass_gives_another_gradient():
    ours, _ = our_gradients("linear", autoencoder_pass="training")
    assert relative_error(ours, GRADIENTS["linear"]["latents"]) > 1e-2


@both_interpolants
@pytest.mark.parametrize("name", KEPT)
def test_gradients_of_the_model_equal_the_hosts(interpolant, name):
    _, ours = our_gradients(interpolant)
    ((renamed, host),) = convert_tensors({name: GRADIENTS[interpolant][name]}, RULES, "host").items()
    assert relative_error(ours[renamed], host) < TOLERANCE


def test_running_statistics_move_once_a_step():
    model = convert()
    our_step(model, INPUTS, LABELS)
    for name in ("running_mean", "running_var"):
        moved = model.state_dict()[f"latent_norm.{name}"]
        torch.testing.assert_close(moved, OUTPUTS[f"training.{name}"], rtol=0, atol=1e-5)


@both_interpolants
def test_every_gradient_of_a_real_checkouts_step_agrees(interpolant):
    """New random weights and statistics, float64, and the host's own label dropout, copied to ours."""
    torch.manual_seed(3)
    sizes = {"input_size": 8, "hidden_size": 32, "decoder_hidden_size": 32, "depth": 3, "num_heads": 4}
    host = import_from("REPA_E_DIR", "models.sit").SiT(
        **sizes, encoder_depth=2, num_classes=7, z_dims=[24], projector_dim=32, qk_norm=False
    )
    randomize(host)
    host.bn.running_mean.normal_()
    host.bn.running_var.uniform_(0.5, 2.0)
    host = host.double()
    dropped = torch.tensor([True, False, False, True, False])
    host.y_embedder.token_drop = lambda labels, _: torch.where(dropped, 7, labels)
    latents, noise = torch.randn(2, 5, 4, 8, 8, dtype=torch.float64)
    inputs = {
        "latents": latents,
        "noise": noise,
        "t": torch.tensor([0.02, 0.3, 0.5, 0.7, 0.98], dtype=torch.float64),
        "labels": torch.tensor([0, 1, 3, 5, 6]),
        "features": torch.randn(5, 16, 24, dtype=torch.float64),
    }
    options, context = describe_repa_e(
        {key: tensor.float() for key, tensor in host.state_dict().items()},
        RepaEArguments(num_heads=4, path_type=interpolant, encoder_depth=2),
    )
    assert context == ModelContext((4, 8, 8), 7, AlignmentContext(feature_dim=24, layer=2, projector_dim=32))
    ours = from_repa_e(host.float().state_dict(), options, context).double()
    of_latents, of_parameters = our_step(ours, inputs, inputs["labels"], dropped)
    host_latents, host_parameters = host_step(host.double(), inputs, interpolant)
    assert relative_error(of_latents, host_latents) < TOLERANCE
    renamed = convert_tensors(host_parameters, RULES, "host")
    errors = {name: relative_error(of_parameters[name], gradient) for name, gradient in renamed.items()}
    assert len(errors) == len(of_parameters)
    assert max(errors.values()) < TOLERANCE, errors
