"""Trained runs that the tests of evaluation, analysis and comparison share; none of them changes one."""

import pytest

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
