"""Exported runs: read back by this package, by diffusers alone, and over the Hub's API, with equal images."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

import simflow_plugin
from simflow_plugin.cli.app import app
from simflow_plugin.errors import CheckpointError, ConfigError, RunDirectoryError
from simflow_plugin.runs.exported import without_local_folders
from tests.evaluation.runs import make_run
from tests.hub.hub_server import hub_server
from tests.training.tiny_runs import tiny_values

MODELS = ("simflow", "starflow", "sit", "dit")


@pytest.fixture(scope="module")
def flow_run(tmp_path_factory):
    """A flow that was trained with an alignment head, by an encoder that other processes do not know."""
    alignment = {"encoder": "toy", "projector_dim": 8}
    return make_run(tmp_path_factory.mktemp("runs") / "flow", alignment=alignment)


@pytest.fixture(scope="module")
def exported(flow_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "out"
    result = CliRunner().invoke(app, ["export", str(flow_run), "--out", str(out), "--license", "mit"])
    assert result.exit_code == 0, result.output
    return out


@pytest.mark.parametrize("name", MODELS)
def test_exported_run_draws_the_same_images(name, tmp_path):
    run = simflow_plugin.load(make_run(tmp_path / "run", name))
    run.save_pretrained(tmp_path / "out")
    read = simflow_plugin.load(tmp_path / "out")
    assert torch.equal(read.sample(4, seed=1), run.sample(4, seed=1))
    images = run.sample(2)
    assert torch.equal(read.encode(images), run.encode(images))
    assert read.classes == run.classes
    again = simflow_plugin.Run.from_pretrained(tmp_path / "out")
    again.save_pretrained(tmp_path / "again")
    assert torch.equal(simflow_plugin.load(tmp_path / "again").sample(2), run.sample(2))


def test_autoencoder_alone_is_exported_without_a_pipeline(tmp_path):
    values = {**tiny_values(None, steps=2, sample_every=2, checkpoint_every=2)}
    run = simflow_plugin.load(make_run(tmp_path / "run", None, training=values["training"]))
    run.save_pretrained(tmp_path / "out")
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    assert torch.equal(simflow_plugin.load(tmp_path / "out").encode(images), run.encode(images))
    assert not (tmp_path / "out" / "model_index.json").exists()


def test_command_samples_from_an_exported_run(flow_run, exported, tmp_path):
    for source, out in ((flow_run, "a.npz"), (exported, "b.npz")):
        command = ["sample", str(source), "--num", "6", "--seed", "2", "--out", str(tmp_path / out)]
        assert CliRunner().invoke(app, command).exit_code == 0
    one, other = (np.load(tmp_path / name)["arr_0"] for name in ("a.npz", "b.npz"))
    assert np.array_equal(one, other)


def test_card_is_filled_from_the_run(exported):
    head, _, text = (exported / "README.md").read_text().removeprefix("---\n").partition("---")
    facts = yaml.safe_load(head)
    assert facts["license"] == "mit"
    assert facts["library_name"] == "simflow-plugin"
    assert "4 steps of 8 images" in text
    assert "`digits`" in text
    assert "10 classes: 0, 1, 2" in text
    assert "Nothing was measured" in text
    assert "trust_remote_code=True" in text
    assert all(not name.startswith("alignment") for name in json_of(exported / "model")["options"])


def test_metrics_come_with_how_they_were_measured(tmp_path):
    from simflow_plugin.evaluation.report.run_report import evaluate_after_training
    from simflow_plugin.runs.run_directory import RunDirectory

    path = make_run(tmp_path / "run")
    evaluate_after_training(RunDirectory(path))
    run = simflow_plugin.load(path)
    run.save_pretrained(tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert f"| {run.metrics['psnr']:.4g} | 20 images, test split of digits, 8 x 8, posterior mean |" in text
    assert simflow_plugin.load(tmp_path / "out").metrics["psnr"] == run.metrics["psnr"]


def test_taken_folders_and_other_weights_are_refused(flow_run, exported):
    run = simflow_plugin.load(flow_run)
    before = (exported / "config.json").read_bytes()
    with pytest.raises(RunDirectoryError, match="not empty"):
        run.save_pretrained(exported)
    assert (exported / "config.json").read_bytes() == before
    with pytest.raises(CheckpointError, match="step 4 with averaged weights only"):
        simflow_plugin.load(exported, step=2)
    result = CliRunner().invoke(app, ["export", str(flow_run), "--out", "x", "--keep-scale"])
    assert result.exit_code == 2
    assert "no effect without --autoencoder" in result.output
    with pytest.raises(ConfigError, match="is nowhere a run directory"):
        simflow_plugin.load("nowhere")


def test_no_folder_of_this_machine_is_exported():
    config = {"data": {"root": "/home/alice/images", "n": 3}, "a": ["~/x.pt", "C:\\Users\\b\\y", "rel/z", ""]}
    assert without_local_folders(config) == {
        "data": {"root": "images", "n": 3},
        "a": ["x.pt", "y", "rel/z", ""],
    }


FRESH = """
import sys
import numpy as np
import torch
from diffusers import DiffusionPipeline
assert not any(name.startswith("simflow_plugin") for name in sys.modules)
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
pipeline.set_progress_bar_config(disable=True)
by_seed = pipeline(["3", "7"], seed=5, output_type="np").images
generator = torch.Generator().manual_seed(1)
first, second = (pipeline([3], generator=generator, guidance=0.5, output_type="pt").images for _ in range(2))
again = pipeline(["3"], generator=torch.Generator().manual_seed(1), guidance=0.5, output_type="pt").images
assert torch.equal(first, again) and not torch.equal(first, second)
assert pipeline(2).images[0].size == (8, 8)
np.save(sys.argv[2], by_seed)
"""


def run_script(source, *arguments, **environment):
    base = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    result = subprocess.run(
        [sys.executable, "-c", source, *map(str, arguments)], env=base, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_pipeline_loads_in_a_process_that_knows_diffusers_only(flow_run, exported, tmp_path):
    run_script(FRESH, exported, tmp_path / "images.npy", HF_HOME=str(tmp_path / "cache"))
    expected = simflow_plugin.load(flow_run).sample(["3", "7"], seed=5)
    found = torch.from_numpy(np.load(tmp_path / "images.npy")).permute(0, 3, 1, 2)
    levels = ((expected + 1) * 127.5).round()
    assert torch.equal((found * 255).round(), levels)


PUSHED = """
import sys
import torch
import simflow_plugin
from diffusers import DiffusionPipeline
run = simflow_plugin.load(sys.argv[1])
url = run.push_to_hub("owner/digits", private=True)
assert "owner/digits/commit" in url, url
fetched = simflow_plugin.load("owner/digits")
assert "snapshots" in str(fetched.loaded.directory.path)
assert torch.equal(fetched.sample(3, seed=4), run.sample(3, seed=4))
other = simflow_plugin.Run.from_pretrained("owner/digits")
assert torch.equal(other.sample(1), run.sample(1))
pipeline = DiffusionPipeline.from_pretrained("owner/digits", trust_remote_code=True)
images = pipeline(3, seed=4, output_type="pt").images
assert torch.equal(images, run.sample(3, seed=4) / 2 + 0.5)
try:
    simflow_plugin.load("owner/nothing")
except simflow_plugin.errors.ConfigError as error:
    assert "not found on the Hub" in str(error), error
else:
    raise AssertionError
"""


def test_push_and_fetch_over_the_api_of_the_hub(exported, tmp_path):
    with hub_server() as server:
        run_script(
            PUSHED,
            exported,
            HF_ENDPOINT=server.address,
            HF_HUB_OFFLINE="0",
            HF_HOME=str(tmp_path / "cache"),
            HF_TOKEN="hf_of_nobody",
            HF_HUB_DISABLE_XET="1",
            HF_HUB_DISABLE_TELEMETRY="1",
        )
        assert server.commits == 1
        files = server.files["owner/digits"]
        assert {"README.md", "model_index.json", "model/config.json", "autoencoder/simflow_part.py"} <= set(
            files
        )
        assert any("library_name: simflow-plugin" in card for card in server.cards)


def json_of(folder):
    return json.loads((folder / "config.json").read_text())
