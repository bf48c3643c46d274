"""A run and its data: the summary at the start, and what happens when the data is no longer what it was."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from simflow_plugin.errors import DataError
from simflow_plugin.evaluation.evaluator import RunEvaluator
from simflow_plugin.evaluation.request import EvaluationRequest
from simflow_plugin.runs.checkpoints import latest_checkpoint
from simflow_plugin.runs.loaded_run import load_run
from simflow_plugin.runs.run_directory import RunDirectory
from simflow_plugin.train import train
from tests.data.makers import CORRUPT, class_folders, png
from tests.training.tiny_runs import tiny_config, tiny_values


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of pictures and a run on it."""
    root = tmp_path_factory.mktemp("trained")
    class_folders(root / "images" / "train", {"cat": 12, "dog": 12})
    class_folders(root / "images" / "val", {"cat": 6, "dog": 6})
    start(root)
    return root


@pytest.fixture
def run(trained, tmp_path):
    """A copy of both; the run is told where its images are now."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


def start(root, steps=2, **data):
    values = tiny_values(steps=steps, checkpoint_every=2, sample_every=2, batch_size=8)
    values["data"] = {"name": "image_folder", "root": str(root / "images"), **data}
    values["evaluation"] = {"judge": "none", "num_samples": 0}
    allowed = ["training.steps", "data.root"]
    train(tiny_config(values=values), RunDirectory(root / "run"), allowed, report=False)


def evaluator(root, **changes) -> RunEvaluator:
    request = EvaluationRequest(
        **{"parts": ("reconstruction",), "extractor": None, "num_samples": 0, **changes}
    )
    return RunEvaluator(load_run(root / "run", "cpu").with_data_root(root / "images"), request)


def test_summary_is_printed_and_stored(run, capsys):
    start(run)
    printed = capsys.readouterr().out
    assert "data: image_folder, 2 classes: cat, dog; images: 24 train, 12 test" in printed
    stored = json.loads((run / "run" / "data.json").read_text())
    assert stored["class_names"] == ["cat", "dog"]
    assert stored["splits"]["test"]["num_by_class"] == [6, 6]
    state = latest_checkpoint(run / "run" / "checkpoints").state
    assert state["class_names"] == ["cat", "dog"]
    assert len(state["content_digests"]) == 24


def test_renamed_class_is_refused_on_resume(run):
    for split in ("train", "val"):
        (run / "images" / split / "cat").rename(run / "images" / split / "zebra")
    with pytest.raises(DataError, match=r"Then: 2 classes: cat, dog\. Now: 2 classes: dog, zebra"):
        start(run, steps=4)


def test_added_class_is_refused_in_evaluation(run):
    class_folders(run / "images" / "train", {"ant": 3})
    with pytest.raises(DataError, match=r"Then: 2 classes: cat, dog\. Now: 3 classes: ant, cat, dog"):
        evaluator(run).measure()


def test_changed_pixels_are_noted_in_results_and_on_resume(run, caplog):
    (run / "images" / "train" / "dog" / "001.png").write_bytes(png(250))
    assert any(
        "1 of 24 training images looked at have another content" in n for n in evaluator(run).measure().notes
    )
    start(run, steps=4)
    assert "another content" in caplog.text


def test_unlabelled_test_images_are_noted_in_results(run):
    shutil.rmtree(run / "images" / "val")
    (run / "images" / "val").mkdir()
    for number in range(4):
        (run / "images" / "val" / f"{number}.png").write_bytes(png(number))
    found = evaluator(run, parts=("likelihood",), posterior_samples=2).measure()
    assert any("the test split is unlabelled" in note for note in found.notes)
    assert found.metrics["latent_bits_per_dim"].on.endswith("unlabelled, so unconditional")


def test_images_that_are_measured_are_counted(run):
    (run / "images" / "val" / "dog" / "001.png").write_bytes(CORRUPT)
    found = evaluator(run).measure()
    assert found.metrics["psnr"].on.startswith("11 of 12 (1 corrupt) images, test split")
    assert found.details["num_held_out"] == 11


def test_class_that_only_the_test_split_has_is_refused_before_training(run):
    class_folders(run / "images" / "val", {"emu": 3})
    shutil.rmtree(run / "run")
    with pytest.raises(DataError, match="no training image has: `emu`"):
        start(run)
    assert not (run / "run").exists()


def test_samples_are_called_by_the_names_of_classes(run):
    from simflow_plugin.cli.app import app

    arguments = ["sample", str(run / "run"), "--num", "4", "--out", str(run / "samples")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    names = sorted(path.name for path in (run / "samples").iterdir())
    assert names == ["000000_cat.png", "000001_dog.png", "000002_cat.png", "000003_dog.png"]
