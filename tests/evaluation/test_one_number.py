"""One run has one number: whatever prints a metric or shows a sample of it, it is the same one."""

import html
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simflow_plugin.evaluation.drawing import grid_indices
from simflow_plugin.evaluation.report.grids import image_grid
from simflow_plugin.evaluation.report.metric_names import format_value
from simflow_plugin.evaluation.report.run_report import evaluate_after_training
from simflow_plugin.evaluation.result import read_evaluation
from simflow_plugin.evaluation.sample_shards import SampleShards
from simflow_plugin.runs.run_directory import RunDirectory
from simflow_plugin.studies.definitions import Study, Variant
from simflow_plugin.studies.stages import StudySettings, measure_variant
from simflow_plugin.studies.table import to_markdown
from tests.commands import succeed
from tests.evaluation.judges import make_judge
from tests.evaluation.runs import copy_run, make_run
from tests.training.tiny_runs import tiny_config, tiny_values

NUM_SAMPLES, NUM_HELD_OUT, SEED_OF_TRAINING = 20, 30, 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("one_number")


@pytest.fixture(scope="module")
def trained(folder):
    """A run with the summary and report of its training, judged by a classifier; its seed is not that of samples."""
    values = tiny_values("simflow", steps=2, sample_every=2, checkpoint_every=2)
    judge = {"name": "encoder", "checkpoint": make_judge(folder / "judge.safetensors", 10), "num_real": 2000}
    values |= {
        "seed": SEED_OF_TRAINING,
        "sampling": {"guidance": 0.5, "grid_per_class": 2},
        "evaluation": {"judge": judge, "num_samples": NUM_SAMPLES, "num_likelihood": NUM_HELD_OUT},
    }
    (folder / "tiny.yaml").write_text(tiny_config(values=values).to_yaml())
    succeed("train", folder / "tiny.yaml", "--out", folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def of_training(trained):
    (result,) = (trained / "evaluations").glob("*/result.json")
    return read_evaluation(result.parent)


@pytest.fixture(scope="module")
def values(of_training):
    found = {name: number.value for name, number in of_training.metrics.items()}
    assert {"class_agreement", "diversity_ratio", "psnr", "latent_bits_per_dim", "image_bits_per_dim"} <= set(
        found
    )
    return found


def evaluate(run):
    return succeed(
        "evaluate", run, "--extractor", "none", "--num-samples", NUM_SAMPLES, "--num-held-out", NUM_HELD_OUT
    )


def without_timing(metrics):
    return {name: value for name, value in metrics.items() if name != "sampling_seconds"}


def test_summary_holds_the_numbers_of_the_evaluation(trained, values):
    summary = json.loads((trained / "summary.json").read_text())
    assert {name: summary[name] for name in values} == values
    assert summary["bits_per_dim"] == values["latent_bits_per_dim"]
    assert (summary["num_samples"], summary["num_held_out"]) == (NUM_SAMPLES, NUM_HELD_OUT)
    assert summary["precision"] == "float32"


def test_report_shows_the_numbers_of_the_evaluation(trained, of_training):
    page = html.unescape((trained / "report.html").read_text())
    for name, number in of_training.metrics.items():
        assert format_value(name, number) in page, name


def test_evaluate_measures_the_numbers_of_training(trained, values, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    (result,) = (run / "evaluations").glob("*/")
    for file in result.iterdir():
        file.unlink()
    printed = evaluate(run)
    again = read_evaluation(result)
    assert without_timing({name: number.value for name, number in again.metrics.items()}) == without_timing(
        values
    )
    for name, number in again.metrics.items():
        assert format_value(name, number) in printed, name


def test_larger_evaluation_renews_summary_and_report(trained, values, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    succeed("evaluate", run, "--extractor", "none", "--num-samples", 40, "--num-held-out", 50)
    (result,) = (run / "evaluations").glob("*/")
    evaluation, summary = read_evaluation(result), json.loads((run / "summary.json").read_text())
    assert summary["latent_bits_per_dim"] == evaluation.metrics["latent_bits_per_dim"].value
    assert summary["latent_bits_per_dim"] != values["latent_bits_per_dim"]
    assert (summary["num_samples"], summary["num_held_out"]) == (40, 50)
    assert format_value("psnr", evaluation.metrics["psnr"]) in (run / "report.html").read_text()


def test_evaluation_with_other_settings_leaves_the_summary_alone(trained, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    before = (run / "summary.json").read_bytes()
    for option in (("--guidance", 0), ("--seed", 5), ("--last-weights",), ("--precision", "bfloat16")):
        succeed("evaluate", run, "--extractor", "none", "--num-samples", 20, "--only", "generation", *option)
    assert (run / "summary.json").read_bytes() == before
    assert len(list((run / "evaluations").iterdir())) == 5


def test_comparison_shows_the_numbers_of_the_evaluation(trained, of_training, values, tmp_path):
    twin = copy_run(trained, tmp_path / "twin")
    succeed("compare", trained, twin, "--out", tmp_path / "out", "--per-class", 1)
    document = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert len(document["runs"]) == 2
    page = html.unescape((tmp_path / "out" / "comparison.html").read_text())
    for run in document["runs"].values():
        assert {name: run["metrics"][name]["value"] for name in values} == values
        assert run["settings"]["precision"] == "float32"
    for name, number in of_training.metrics.items():
        assert format_value(name, number) in page, name


def test_study_shows_the_numbers_of_the_evaluation(trained, folder, values, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    study = Study("tiny", "Tiny", (), (Variant("one", "the one"),), (0.5,))
    settings = StudySettings(folder, folder / "judge.safetensors", 1.0, NUM_SAMPLES, NUM_HELD_OUT)
    measured = measure_variant(RunDirectory(run), settings, study.guidance)
    found = measured["metrics"]["0.5"]
    assert {name: found[name] for name in without_timing(values)} == without_timing(values)
    document = {"settings": settings.what_decides(), "autoencoders": {}, "variants": {"one": measured}}
    table = to_markdown(study, document)
    for text in (
        f"{values['latent_bits_per_dim']:.3f}",
        f"{values['psnr']:.2f}",
        f"{values['class_agreement']:.1%}",
    ):
        assert text in table


def test_files_and_grids_show_the_samples_that_were_evaluated(trained, of_training, tmp_path):
    shards = SampleShards(of_training.folder, NUM_SAMPLES)
    succeed("sample", trained, "--num", NUM_SAMPLES, "--out", tmp_path / "s.npz")
    judged = shards.images(range(NUM_SAMPLES)).astype(int)
    assert np.abs(np.load(tmp_path / "s.npz")["arr_0"] - judged).max() <= 1  # batches of another size
    by_class = np.array(grid_indices(10, 2)).reshape(2, -1).T.ravel()
    drawn = image_grid(shards.images(by_class.tolist()), 2, [str(digit) for digit in range(10)])
    expected = np.asarray(drawn).astype(int)
    (grid,) = Path(trained / "samples").iterdir()
    assert np.abs(np.asarray(Image.open(grid)).astype(int) - expected).max() <= 1


def test_samples_do_not_depend_on_the_seed_of_training(of_training):
    assert of_training.settings["seed"] == 0 != SEED_OF_TRAINING


def test_judge_that_is_gone_costs_its_own_numbers_only(trained, values, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("judge.safetensors", "gone.safetensors"))
    (result,) = (run / "evaluations").glob("*/")
    (result / "result.json").unlink()
    found = evaluate_after_training(RunDirectory(run), "cpu")
    assert found.metrics["psnr"].value == values["psnr"]
    assert "class_agreement" not in found.metrics
    assert "gone.safetensors" in (run / "report.html").read_text()


def test_autoencoder_alone_gets_a_summary_of_its_reconstructions(tmp_path):
    run = make_run(tmp_path / "run", None)
    evaluate_after_training(RunDirectory(run), "cpu")
    summary = json.loads((run / "summary.json").read_text())
    assert {"psnr", "ssim", "train_seconds"} <= set(summary)
    assert not {"num_samples", "class_agreement", "bits_per_dim"} & set(summary)
