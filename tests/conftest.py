"""Settings that every test shares: one thread, no network, no colour, fixed seeds."""

import os
import random

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("NO_COLOR", "1")

import numpy as np
import pytest
import torch

from tests.third_party import declare

# Runs in this process are compared bit for bit with runs in others, which the tests start on one thread.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seed():
    _seed_everything()


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef, request):
    """Seed what several tests share as well: it is made before a test's own seed, after whichever test ran before."""
    if fixturedef.scope != "function":
        _seed_everything()


def _seed_everything():
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a tiny third-party distribution onto the path, as pip would."""

    def make(distribution: str, module: str, source: str, name: str, attribute: str, kind: str = "models"):
        site = tmp_path / distribution
        declare(site, distribution, f"[simflow_plugin.{kind}]\n{name} = {module}:{attribute}\n")
        (site / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(str(site))

    return make
