"""Trained runs that the tests of evaluation, analysis and comparison share; none of them changes one."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.evaluation.runs import make_run


@pytest.fixture(scope="session")
def flow_run(tmp_path_factory):
    """A SimFlow run, guided, with the digits judge."""
    return make_run(tmp_path_factory.mktemp("runs") / "flow")


@pytest.fixture(scope="session")
def diffusion_run(tmp_path_factory):
    """A SiT run on the same data: no density."""
    return make_run(tmp_path_factory.mktemp("runs") / "diffusion", "sit")


@pytest.fixture(scope="session")
def large_run(tmp_path_factory):
    """A SimFlow run at another resolution."""
    return make_run(tmp_path_factory.mktemp("runs") / "large", image_size=16)


@pytest.fixture(scope="session")
def noisy_run(tmp_path_factory):
    """A STARFlow run: its flow is trained on latents with noise added."""
    return make_run(tmp_path_factory.mktemp("runs") / "noisy", "starflow")


@pytest.fixture(scope="session")
def vit(tmp_path_factory):
    """A file with random weights of the smallest network that timm has."""
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", pretrained=False).state_dict(), path)
    return path
