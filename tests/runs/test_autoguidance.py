"""`sampling.autoguidance` and `--autoguidance RUN[@step]`: a weaker model guides a run, or is refused by name."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from typer.testing import CliRunner

from simflow_plugin.cli.app import app
from simflow_plugin.config.schema import Autoguidance
from simflow_plugin.errors import CheckpointError, ConfigError, EvaluationError
from simflow_plugin.evaluation.drawing import ImageSampler
from simflow_plugin.evaluation.evaluator import evaluation_settings
from simflow_plugin.evaluation.flops import measure_run
from simflow_plugin.evaluation.report.two_samplers import _flops
from simflow_plugin.evaluation.request import EvaluationRequest
from simflow_plugin.runs.autoguidance import chosen_guide, with_autoguidance
from simflow_plugin.runs.checkpoints import checkpoint_folders
from simflow_plugin.runs.exported import write_exported
from simflow_plugin.runs.loaded_run import load_run
from simflow_plugin.runs.run_directory import RunDirectory
from simflow_plugin.train import train
from tests.training.tiny_runs import make_trainer, tiny_config, tiny_values

KEEPS = {"steps": 4, "checkpoint_every": 2, "keep_checkpoints": 2}


@pytest.fixture(scope="module", params=["simflow", "sit"])
def run(tmp_path_factory, request):
    path = tmp_path_factory.mktemp("run") / request.param
    make_trainer(tiny_config(request.param, **KEEPS), path).train()
    return path


def configured(model, guide, weight=1.0, **changes):
    config = tiny_config(model, **(KEEPS | changes))
    sampling = config.sampling.model_copy(
        update={"guidance": weight, "autoguidance": Autoguidance.model_validate(guide)}
    )
    return config.model_copy(update={"sampling": sampling})


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("/a/b", ("/a/b", None)),
        ("/a/b@20", ("/a/b", 20)),
        ("/a@b/c", ("/a@b/c", None)),
        ("@20", (None, 20)),
    ],
)
def test_a_guide_is_named_with_or_without_a_step(text, parts):
    guide = Autoguidance.model_validate(text)
    assert (guide.run, guide.step) == parts
    assert str(guide) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("@0", "step: Input should be greater than or equal to 1"),
        ("", "found an empty text"),
        ("@" + "9" * 30, "expected no integer beyond"),
        ("run@\N{SUPERSCRIPT TWO}", "no such folder"),
        ("@\N{SUPERSCRIPT TWO}", "no such folder"),
    ],
)
def test_a_text_that_names_no_guide_is_refused_by_option(text, said, tmp_path):
    with pytest.raises(ConfigError, match=f"^--autoguidance '?{text}'?: .*{said}"):
        chosen_guide(tiny_config(), tmp_path, text)


def test_an_empty_run_is_not_the_current_folder():
    with pytest.raises(ValidationError, match="at least 1 "):
        Autoguidance.model_validate({"run": "", "step": 2})


def draw(run, out, *options):
    result = CliRunner().invoke(app, ["sample", str(run), "--num", "4", "--out", str(out), *options])
    assert result.exit_code == 0, result.output
    return np.load(out)["arr_0"]


def test_an_earlier_checkpoint_guides_the_samples(run, tmp_path):
    guided = ["--guidance", "50", "--autoguidance"]
    plain = draw(run, tmp_path / "a.npz", "--guidance", "0")
    # By itself: not at all, but for rounding of what is extrapolated.
    by_itself = draw(run, tmp_path / "b.npz", *guided, f"{run}@4")
    assert np.abs(by_itself.astype(int) - plain).max() <= 1
    by_earlier = draw(run, tmp_path / "c.npz", *guided, f"{run}@2")
    assert np.abs(by_earlier.astype(int) - plain).max() > 1
    assert np.array_equal(draw(run, tmp_path / "d.npz", *guided, "@2"), by_earlier)


def test_the_settings_of_an_evaluation_have_the_weights_of_the_guide(run, tmp_path):
    loaded = load_run(run, "cpu")

    def found(guidance, text):
        request = EvaluationRequest(guidance=guidance, autoguidance=text)
        return evaluation_settings(loaded, request).get("autoguidance")

    of_itself = found(1.0, "@2")
    moved = shutil.copytree(run, tmp_path / "moved")
    assert found(1.0, f"{run}@2") == found(1.0, f"{moved}@2") == of_itself
    assert found(1.0, str(run)) == found(1.0, f"{run}@4") != of_itself
    shutil.rmtree(moved)
    make_trainer(tiny_config(run.name, **KEEPS, batch_size=4), moved).train()
    assert found(1.0, f"{moved}@2") != of_itself
    exports = [tmp_path / name for name in ("a", "b")]
    for export, step in zip(exports, (2, 4), strict=True):
        export.mkdir()
        write_exported(load_run(run, "cpu", step=step), export)
    before = [found(1.0, str(export)) for export in exports]
    shutil.rmtree(exports[0])
    shutil.move(exports[1], exports[0])
    assert found(1.0, str(exports[0])) == before[1] != before[0]
    assert found(1.0, None) is None
    assert found(0.0, "@2") is None


def test_the_run_keeps_its_own_model(run):
    loaded = load_run(run, "cpu")
    guided = with_autoguidance(loaded, f"{run}@2")
    assert loaded.model.guide is None
    assert list(guided.model.state_dict()) == list(loaded.model.state_dict())


def test_a_missing_checkpoint_and_a_missing_run_are_named(run, tmp_path):
    loaded = load_run(run, "cpu")
    with pytest.raises(
        CheckpointError, match=r"--autoguidance @3: .*no checkpoint of step 3. There are: 2, 4"
    ):
        with_autoguidance(loaded, "@3")
    with pytest.raises(ConfigError, match=r"--autoguidance .*nowhere: .*no such folder"):
        with_autoguidance(loaded, str(tmp_path / "nowhere"))


def test_a_guide_without_a_weight_is_refused(run):
    with pytest.raises(ConfigError, match="no effect with guidance 0"):
        ImageSampler.of_run(load_run(run, "cpu"), 0.0, autoguidance="@2")


def test_latents_of_another_shape_and_another_model_are_refused(run, tmp_path):
    other = tmp_path / "other"
    kind = "sit" if run.name == "simflow" else "simflow"
    make_trainer(tiny_config(kind, **KEEPS), other).train()
    with pytest.raises(ConfigError, match="the guide is a"):
        with_autoguidance(load_run(run, "cpu"), str(other))


@pytest.mark.parametrize("model", ["simflow", "sit"])
def test_a_configured_guide_guides_grids_samples_and_their_count_of_operations(model, tmp_path):
    config = configured(model, "@2", weight=50.0)
    train(config, RunDirectory(tmp_path / "run"), [], report=False)
    loaded = load_run(tmp_path / "run", "cpu")
    assert chosen_guide(loaded.config, tmp_path / "run").text == "@2"
    samplers = [ImageSampler.of_run(loaded, autoguidance=text) for text in (None, "@2", "none")]
    assert samplers[0].model.guide is not None
    assert samplers[2].model.guide is None
    guided, plain = (measure_run(loaded, weight) for weight in (50.0, 0.0))
    assert guided.sampling_flops > plain.sampling_flops
    assert guided.model_parameters == plain.model_parameters


def test_the_guide_is_checked_before_anything_is_written(tmp_path):
    guide = tmp_path / "guide"
    make_trainer(tiny_config("dit", **KEEPS), guide).train()

    def refused(error, message, named, **changes):
        with pytest.raises(error, match=message):
            train(configured("sit", named, **changes), RunDirectory(tmp_path / "run"), [], report=False)
        assert not (tmp_path / "run" / "config.yaml").exists()

    refused(ConfigError, r"sampling.autoguidance @3: no checkpoint of step 3", "@3")
    refused(ConfigError, r"sampling.autoguidance @4: no checkpoint", "@4")
    refused(ConfigError, r"sampling.autoguidance .*guide: .*the guide is a DiT", str(guide))
    refused(CheckpointError, r"sampling.autoguidance .*no checkpoint of step 7", f"{guide}@7")
    refused(ConfigError, "no such folder", str(tmp_path / "none"))


def test_the_guide_of_the_own_run_outlives_checkpoints_between(tmp_path):
    config = configured("sit", "@2", checkpoint_every=1, keep_checkpoints=1)
    make_trainer(config, tmp_path / "run").train()
    kept = [path.name for path in checkpoint_folders(RunDirectory(tmp_path / "run").checkpoints)]
    assert kept == ["step_00000002", "step_00000004"]


def test_a_guide_on_another_autoencoder_is_refused(tmp_path):
    """Its latents have the same shape, and mean something else."""
    runs = {}
    for name, seed in (("run", 0), ("twin", 0), ("other", 1)):
        values = tiny_values("sit", steps=2, checkpoint_every=2) | {"seed": seed}
        runs[name] = tmp_path / name
        make_trainer(tiny_config(values=values), runs[name]).train()
    loaded = load_run(runs["run"], "cpu")
    assert with_autoguidance(loaded, str(runs["twin"])).model.guide is not None
    with torch.no_grad():  # what the decoder is trained to say of them does not matter
        loaded.autoencoder.last_layer().zero_()
    assert with_autoguidance(loaded, str(runs["twin"])).model.guide is not None
    with pytest.raises(EvaluationError, match=r"encoder of .*other gives .* other latents than .*run, "):
        with_autoguidance(loaded, str(runs["other"]))
    with torch.no_grad():
        loaded.autoencoder.latent_scale.mul_(2)
    with pytest.raises(EvaluationError, match="other latents"):
        with_autoguidance(loaded, str(runs["twin"]))
    config = configured("sit", str(runs["other"]))
    with pytest.raises(EvaluationError, match="other latents than the run to train"):
        train(config, RunDirectory(tmp_path / "new"), [], report=False)


def test_a_guide_on_the_autoencoder_that_training_starts_from_is_no_guide_at_its_end(tmp_path):
    guide = tmp_path / "guide"
    make_trainer(tiny_config("simflow", steps=2, checkpoint_every=2), guide).train()
    config = configured("simflow", str(guide), init_from={"source": str(guide), "weights": "averaged"})
    with pytest.raises(ConfigError, match=r"autoencoder\.trainable is full"):
        train(config, RunDirectory(tmp_path / "new"), [], report=False)


def test_a_guide_that_is_gone_costs_a_grid_and_not_the_run(run, tmp_path, caplog):
    """The run goes on to its last step; a guide that was loaded before stays with it."""
    guide = shutil.copytree(run, tmp_path / "guide")
    trainer = make_trainer(configured(run.name, str(guide)), tmp_path / "run")
    grids, averages = trainer.sample_grids, trainer.averages.main
    guide.rename(tmp_path / "away")
    assert grids.save(1, trainer.joint, averages) is None
    assert "No grid of samples at step 1: sampling.autoguidance" in caplog.text
    (tmp_path / "away").rename(guide)
    assert grids.save(2, trainer.joint, averages).is_file()
    shutil.rmtree(guide)
    assert grids.save(3, trainer.joint, averages).is_file()


def test_a_comparison_of_samplers_counts_the_guide_that_they_sampled_with(run):
    loaded = load_run(run, "cpu")
    guided = ImageSampler.of_run(loaded, 1.0, autoguidance="@2")
    plain = ImageSampler.of_run(loaded, 0.0)
    counts = [_flops(SimpleNamespace(loaded=loaded, sampler=sampler)) for sampler in (guided, plain)]
    assert counts[0] > counts[1]
    parameters = [measure_run(loaded, 1.0, sampler.model).model_parameters for sampler in (guided, plain)]
    assert parameters[0] == parameters[1]
