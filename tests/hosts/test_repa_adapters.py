"""The adapter keeps what the REPA host's loss, sampler and checkpoints expect."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from simflow_plugin.hosts import repa_adapters as repa
from simflow_plugin.hosts.hosted_flow import FlowKind, sample
from tests.hosts.test_repa_e_adapters import TINY

ARGUMENTS = {"input_size": 4, "num_classes": 10, "use_cfg": True, "z_dims": [6, 5], "encoder_depth": 2}


@pytest.fixture
def model():
    model = repa.RepaFlow(FlowKind("STARFlow", "S", 2, TINY), **ARGUMENTS)
    for parameter in model.core.flow.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def losses(model):
    features = [torch.randn(3, 16, 6), torch.randn(3, 16, 5)]
    return model(torch.randn(3, 4, 4, 4), zs=features, y=torch.tensor([0, 9, 10]))


def test_losses_have_the_hosts_shapes_and_reach_every_parameter(model):
    nll, alignment = losses(model.train())
    assert (nll.shape, alignment.shape) == ((3,), ())
    (nll.mean() + alignment.mean()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_host_gets_models_for_a_frozen_autoencoder_only():
    models, samplers = {}, {}
    repa.add_models(models)
    repa.add_samplers(samplers)
    assert {name.split("-")[0] for name in models} == {"STARFlow"}
    assert samplers == {repa.RepaFlow: sample}
