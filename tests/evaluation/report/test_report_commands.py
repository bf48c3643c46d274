"""The commands evaluate, analyze and compare: what they write, what they print, how they refuse."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.commands import simflow
from tests.evaluation.runs import copy_run, make_run

QUICK = ["--num-samples", "20", "--extractor", "none", "--num-held-out", "12"]


def call(*arguments, status=0):
    ended, output = simflow(*arguments)
    assert ended == status, output
    return output


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    first = make_run(folder / "first", name="first")
    paths = [first, make_run(folder / "second", "sit", name="second")]
    for path in paths:
        call("evaluate", path, *QUICK)
    return paths


@pytest.fixture(scope="module")
def comparison(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    call("compare", *runs, "--out", folder, "--per-class", "1")
    return folder


def test_evaluate_prints_weights_and_writes_page_npz_and_png(runs, tmp_path):
    output = call("evaluate", runs[0], *QUICK, "--npz", tmp_path / "a.npz", "--png", tmp_path / "png")
    assert "averaged (EMA) weights" in output
    assert (tmp_path / "a.npz").exists()
    assert len(list((tmp_path / "png").glob("*.png"))) == 20
    (page,) = runs[0].glob("evaluations/*/evaluation.html")
    assert "test split of digits" in page.read_text()


def test_interrupted_evaluation_keeps_its_shards(runs):
    shards = {path: path.stat().st_mtime_ns for path in runs[0].glob("evaluations/*/shard_*.npz")}
    call("evaluate", runs[0], *QUICK)
    assert {path: path.stat().st_mtime_ns for path in shards} == shards


def test_missing_inception_is_refused_before_sampling(runs, tmp_path):
    output = call("evaluate", runs[0], "--weights", tmp_path / "none.pth", "--seed", 9, status=2)
    assert re.search(r"error: .*none\.pth: no such file \(--weights.*https://", output)
    assert len(list((runs[0] / "evaluations").iterdir())) == 1


def test_earlier_checkpoints_draw_curves_of_quality(runs, tmp_path):
    run = copy_run(runs[0], tmp_path / "run")
    call("evaluate", run, *QUICK, "--step", 2, "--only", "reconstruction")
    call("compare", run, runs[1], "--out", tmp_path / "out", "--per-class", 1)
    assert "Evaluated quality against steps of training" in (tmp_path / "out" / "comparison.html").read_text()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--step", 3, "no checkpoint of step 3. There are: 2, 4"),
        ("--reference", "validation", "expected test or train"),
    ],
)
def test_unknown_choice_names_those_that_are_there(runs, option, value, message):
    assert message in call("evaluate", runs[0], option, value, status=2)


def test_analyze_writes_page_numbers_and_pictures(runs, tmp_path):
    run = copy_run(runs[0], tmp_path / "run")
    assert "high-frequency ratio" in call("analyze", run, "--num-images", 12)
    assert {"latent-statistics.png", "decoder-robustness.png", "interpolation.png", "flow.png"} <= {
        path.name for path in (run / "analysis").iterdir()
    }
    page = (run / "analysis" / "analysis.html").read_text()
    assert "Straight lines between the posterior means" in page
    assert json.loads((run / "analysis" / "analysis.json").read_text())["metrics"]


def test_page_of_a_comparison_alone_is_one_file_that_opens_anywhere(comparison, runs, tmp_path):
    page = tmp_path / "elsewhere" / "both.html"
    page.parent.mkdir()
    output = call("compare", *runs, "--out", tmp_path / "out", "--per-class", 1, "--html", page)
    assert str(page.resolve()) in output.replace("\n", "")
    text = page.read_text()
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)
    assert "is there already" in call("compare", *runs, "--html", page, status=2)
    assert "ends in .html" in call("compare", *runs, "--html", tmp_path / "page", status=2)


def test_a_place_for_the_page_that_cannot_be_is_refused_before_anything_is_read(tmp_path):
    taken = tmp_path / "taken.html"
    taken.mkdir()
    for overwrite in ([], ["--overwrite"]):
        output = call("compare", "no-run", "--html", taken, *overwrite, status=2)
        assert "is a folder" in output.replace("\n", " ")
    output = call("compare", "no-run", "--overwrite", status=2)
    assert "--overwrite has no effect without --html" in output.replace("\n", " ")


def test_markdown_has_a_column_a_run_units_and_the_caveat_of_latent_bits(comparison):
    text = (comparison / "comparison.md").read_text()
    assert "| metric | first | second | measured on |" in text
    assert re.search(r"\| training, FLOPs / image \| [\d.]+ [kMG]FLOP \|", text)
    assert re.search(r"latent bits / dim .*not comparable between autoencoders", text)


def test_published_numbers_of_imagenet_do_not_stand_beside_digits(comparison):
    page = (comparison / "comparison.html").read_text()
    assert len(re.findall(r"<table>.*?</table>", page, re.DOTALL)) == 2
    for text in (page, (comparison / "comparison.md").read_text()):
        assert "ImageNet" not in text


def test_runs_on_different_data_are_refused_unless_forced(runs, tmp_path):
    other = make_run(tmp_path / "other", name="other", data={"name": "digits", "split_seed": 1})
    assert "split_seed: 0 in first, 1 in other" in call(
        "compare", runs[0], other, "--out", tmp_path, status=2
    )
    call("compare", runs[0], other, "--out", tmp_path / "out", "--per-class", 1, "--force")
    assert "Forced although they differ" in (tmp_path / "out" / "comparison.html").read_text()


def test_browser_shows_tables_and_images_of_a_comparison(comparison, browser):
    page = browser(comparison / "comparison.html")
    assert re.search(r'<th scope="row">PSNR, dB', page)
    assert page.count('<img class="pixels"') == 1
    assert page.count('<img class="plot"') >= 2


def test_browser_renders_a_comparison_on_a_phone(comparison, browser, tmp_path):
    shot = browser(comparison / "comparison.html", screenshot=tmp_path / "phone.png", size=(500, 900))
    assert np.asarray(Image.open(shot).convert("L")).std() > 5
