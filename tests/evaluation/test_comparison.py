"""Comparison: what was measured alike stands in one table, anything else is refused or said."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from simflow_plugin.errors import CheckpointError, ConfigError, EvaluationError
from simflow_plugin.evaluation.comparison import _merge, add_costs, add_samples, check_comparable, read_runs
from simflow_plugin.evaluation.result import Evaluation, Measured
from tests.evaluation.runs import copy_run, evaluate, make_run


@pytest.fixture(scope="module")
def pair(flow_run, diffusion_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    paths = [copy_run(flow_run, folder / "flow"), copy_run(diffusion_run, folder / "diffusion")]
    for path in paths:
        evaluate(path)
    return paths


def test_runs_evaluated_alike_are_comparable(pair):
    runs = read_runs(pair)
    assert check_comparable(runs, force=False) == []
    assert [run.name for run in runs] == ["flow", "diffusion"]
    assert runs[0].metrics["psnr"].low is not None


def test_flows_on_clean_and_on_noisy_latents_stand_in_one_table(pair, noisy_run, tmp_path):
    """STARFlow's density is of noisy latents: its bits are shown, and everything else is compared."""
    starflow = copy_run(noisy_run, tmp_path / "starflow")
    result = evaluate(starflow)
    runs = read_runs([pair[0], starflow])
    assert check_comparable(runs, force=False) == []
    assert any("latents plus noise of std 0.3" in note for note in result.notes)


def test_training_of_an_aligned_run_costs_what_its_objective_costs(tmp_path):
    alignment = {"encoder": "toy", "projector_dim": 8, "autoencoder_weight": 1.5}
    run = make_run(tmp_path / "run", alignment=alignment)
    compared = read_runs([run, make_run(tmp_path / "plain")])
    add_costs(compared)
    assert compared[0].cost.training_flops > compared[1].cost.training_flops


def test_a_run_is_compared_though_its_guide_is_gone(pair, tmp_path):
    run, guide = (copy_run(pair[1], tmp_path / name) for name in ("run", "guide"))
    shutil.rmtree(run / "evaluations")
    values = yaml.safe_load((run / "config.yaml").read_text())
    values["sampling"] |= {"guidance": 1.0, "autoguidance": f"{guide}@2"}
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    evaluate(run)
    here = read_runs([run, pair[0]])[0]
    shutil.rmtree(guide)
    found = read_runs([run, pair[0]])[0]
    assert found.metrics == here.metrics != {}
    assert any("guide" in note for note in found.notes)
    add_costs([found])
    add_samples([found], per_class=1, seed=0)
    assert found.cost is None
    assert found.samples is None


def test_runs_of_different_resolution_are_refused(flow_run, large_run):
    with pytest.raises(EvaluationError, match=r"image_size: 8 in .*, 16 in .*--force"):
        check_comparable(read_runs([flow_run, large_run]), force=False)


def test_metrics_under_different_conditions_are_refused_unless_forced(pair, tmp_path):
    other = copy_run(pair[1], tmp_path / "other")
    evaluate(other, num_held_out=9)
    runs = read_runs([pair[0], other])
    with pytest.raises(EvaluationError, match="psnr: '12 images.* but '9 images"):
        check_comparable(runs, force=False)
    assert any("psnr" in problem for problem in check_comparable(runs, force=True))


def test_repeated_seeds_give_an_interval_over_seeds(pair, tmp_path):
    run = copy_run(pair[0], tmp_path / "seeds")
    values = [evaluate(run, seed=seed).metrics["diversity_ratio"].value for seed in (0, 1)]
    metrics = read_runs([run, pair[1]])[0].metrics
    assert metrics["diversity_ratio"].value == pytest.approx(np.mean(values))
    assert metrics["diversity_ratio"].interval == "t interval of 2 seeds"
    assert metrics["psnr"].interval == "bootstrap of 12 images"


def test_numbers_that_no_seed_changes_get_no_interval_over_seeds():
    """rFID and AUROC are of held-out images: two seeds of the samples are two times the same number."""
    measured = {"rfid": Measured(1.2), "auroc_latent": Measured(0.8, 0.7, 0.9, "bootstrap of both sets")}
    merged = _merge([Evaluation(Path("a"), {}, measured), Evaluation(Path("b"), {}, measured)])
    assert merged == measured


def test_run_that_was_not_evaluated_shows_no_number_and_says_so(flow_run, diffusion_run):
    found = read_runs([flow_run, diffusion_run])[0]
    assert found.metrics == {}
    assert any("run simflow evaluate" in note for note in found.notes)


def test_costs_are_counted(pair):
    runs = read_runs(pair)
    add_costs(runs)
    for run in runs:
        assert run.cost.model_parameters == sum(p.numel() for p in run.loaded.model.parameters())
        assert run.cost.training_flops > 0
        assert run.cost.sampling_flops > 0


def test_samples_are_of_the_same_index_in_every_run(flow_run, tmp_path):
    twin = copy_run(flow_run, tmp_path / "twin")
    runs = read_runs([flow_run, twin])
    add_samples(runs, per_class=1, seed=5)
    np.testing.assert_array_equal(runs[0].samples, runs[1].samples)
    assert runs[0].metrics["sampling_seconds"].value > 0


@pytest.mark.parametrize(("count", "message"), [(1, "two are the least"), (2, "given twice")])
def test_one_run_is_refused(flow_run, count, message):
    with pytest.raises(EvaluationError, match=message):
        read_runs([flow_run] * count)


def test_folder_that_is_no_run_is_refused(flow_run, tmp_path):
    with pytest.raises(ConfigError, match="run directory"):
        read_runs([flow_run, tmp_path])


def test_run_without_checkpoint_is_refused(flow_run, tmp_path):
    run = copy_run(flow_run, tmp_path / "run")
    for file in (run / "checkpoints").rglob("manifest.json"):
        file.unlink()
    with pytest.raises(CheckpointError, match="none of the"):
        read_runs([flow_run, run])
