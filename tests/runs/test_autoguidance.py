"""`--autoguidance RUN[@step]`: a weaker checkpoint of a run guides it; what cannot is refused by name."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from simflow_plugin.cli.app import app
from simflow_plugin.errors import CheckpointError, EvaluationError
from simflow_plugin.runs.autoguidance import guide_name, parse_guide, with_autoguidance
from simflow_plugin.runs.loaded_run import load_run
from tests.training.tiny_runs import make_trainer, tiny_config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "simflow"
    changes = {"steps": 4, "checkpoint_every": 2, "keep_checkpoints": 2}
    make_trainer(tiny_config("simflow", **changes), path).train()
    return path


@pytest.mark.parametrize(
    ("text", "parts"), [("a/b", ("a/b", None)), ("a/b@20", ("a/b", 20)), ("a@b/c", ("a@b/c", None))]
)
def test_a_run_is_named_with_or_without_a_step(text, parts):
    assert parse_guide(text) == (Path(parts[0]), parts[1])


def draw(run, out, *options):
    result = CliRunner().invoke(app, ["sample", str(run), "--num", "4", "--out", str(out), *options])
    assert result.exit_code == 0, result.output
    return np.load(out)["arr_0"]


def test_an_earlier_checkpoint_guides_the_samples(run, tmp_path):
    guided = ["--guidance", "50", "--autoguidance"]
    plain = draw(run, tmp_path / "a.npz", "--guidance", "0")
    assert np.array_equal(draw(run, tmp_path / "b.npz", *guided, f"{run}@4"), plain)  # by itself: not at all
    assert not np.array_equal(draw(run, tmp_path / "c.npz", *guided, f"{run}@2"), plain)


def test_the_name_says_the_step(run):
    assert guide_name(str(run)) == f"{run}@4"


def test_the_run_keeps_its_own_model(run):
    loaded = load_run(run, "cpu")
    guided = with_autoguidance(loaded, f"{run}@2")
    assert loaded.model.guide is None
    assert list(guided.model.state_dict()) == list(loaded.model.state_dict())


def test_a_missing_checkpoint_is_named(run):
    with pytest.raises(CheckpointError, match="no checkpoint of step 3"):
        with_autoguidance(load_run(run, "cpu"), f"{run}@3")


def test_a_model_that_is_no_flow_is_refused(tmp_path):
    path = tmp_path / "sit"
    make_trainer(tiny_config("sit", steps=2, checkpoint_every=2), path).train()
    with pytest.raises(EvaluationError, match="SiT cannot be guided by another model"):
        with_autoguidance(load_run(path, "cpu"), str(path))
