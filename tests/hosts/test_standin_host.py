"""The patched stand-in host trains, samples and keeps its own models, with, without and despite plugins."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from simflow_plugin.errors import HostError
from simflow_plugin.hosts import repa_e_adapters as repa_e
from tests.hosts.conftest import OWN_ENTRIES
from tests.hosts.test_repa_e_adapters import TINY

OWN = ["--model", "Scale-S"]
JOINT = ["--model", "SimFlow-S/2", "--vae", "f8d4-fixedvar"]


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    """Let the host build small flows under the published names."""
    kinds = [repa_e.FlowKind(kind.family, kind.size, kind.patch_size, TINY) for kind in repa_e.flow_kinds()]
    monkeypatch.setattr(repa_e, "flow_kinds", lambda: kinds)


def run(script, words):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand((4, 3, 32, 32), generator=generator) * 2 - 1
    features = torch.randn((4, 16, 6), generator=generator)
    return script.train(script.parse_args(words), images, torch.tensor([0, 1, 2, 9]), features)


def add_other(models):
    models["Other-S"] = partial(repa_e.RepaEFlow, repa_e.FlowKind("SimFlow", "S", 1, TINY))


def test_joint_training_moves_flow_autoencoder_and_average(import_script):
    script = import_script()
    args = script.parse_args(JOINT)
    torch.manual_seed(0)
    model, vae, _ = script.build(args)
    result = run(script, JOINT)
    for start, end in ((model, result["model"]), (vae, result["vae"]), (model, result["ema"])):
        pairs = zip(start.named_parameters(), end.parameters(), strict=True)
        assert any(not torch.equal(a, b) for (_, a), b in pairs)
    assert result["images"].shape == (2, 3, 32, 32)
    assert all(map(torch.isfinite, torch.tensor(result["log"]).flatten()))


def test_the_hosts_own_model_trains_the_same_with_the_patch_and_a_plugin(import_script):
    before = run(import_script(is_patched=False, packages={}), OWN)["log"]
    assert run(import_script(), OWN)["log"] == before


def test_without_a_plugin_the_patched_host_offers_its_own_choices_only(import_script, capsys):
    script = import_script(packages={})
    assert sorted(script.MODELS) == ["Scale-S"]
    assert len(run(script, OWN)["log"]) == 2
    with pytest.raises(SystemExit):
        script.parse_args(JOINT)
    assert "invalid choice" in capsys.readouterr().err


def test_any_package_adds_models(import_script):
    script = import_script(packages={"other": {"standin.models": f"{__name__}:add_other"}})
    assert sorted(script.MODELS) == ["Other-S", "Scale-S"]


def test_a_broken_package_is_named_and_the_others_work(import_script):
    packages = {"simflow": OWN_ENTRIES, "broken": {"standin.models": "no_such_module:add"}}
    with pytest.warns(UserWarning, match="standin.models: broken = no_such_module:add was skipped"):
        script = import_script(packages=packages)
    assert "SimFlow-S/2" in script.MODELS


def test_a_learned_variance_is_allowed_with_one_warning(import_script):
    script = import_script()
    with pytest.warns(UserWarning, match="--vae f8d4-fixedvar") as caught:
        run(script, ["--model", "SimFlow-S/2", "--vae", "f8d4"])
    assert sum("ablation" in str(one.message) for one in caught) == 1


def test_starflow_trains_with_a_frozen_autoencoder_only(import_script):
    script = import_script()
    words = ["--model", "STARFlow-S/2", "--vae", "f8d4"]
    with pytest.raises(HostError, match="frozen autoencoder"):
        script.build(script.parse_args(words))
    assert len(run(script, [*words, "--vae-learning-rate", "0"])["log"]) == 2


def test_a_grid_that_the_patch_does_not_divide_is_refused_by_name(import_script):
    script = import_script()
    with pytest.raises(HostError, match=r"SimFlow-S/2: .*does not divide the latent grid 5 x 5"):
        script.build(script.parse_args([*JOINT, "--resolution", "40"]))
