"""An exported folder is evaluated, analyzed and compared as the run that it was made from."""

import pytest

from simflow_plugin.evaluation.result import read_evaluation
from tests.commands import succeed
from tests.evaluation.runs import make_run


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The directory of a run and its export, both evaluated alike; the export's own files stay as they were."""
    folder = tmp_path_factory.mktemp("pair")
    run = make_run(folder / "run")
    succeed("export", run, "--out", folder / "exported")
    before = files_of(folder / "exported")
    for path in (run, folder / "exported"):
        succeed("evaluate", path, "--num-samples", 20, "--num-held-out", 20, "--extractor", "none")
    assert before.items() <= files_of(folder / "exported").items()
    return run, folder / "exported"


def test_evaluation_of_an_export_gives_the_numbers_of_the_run(pair):
    ours, theirs = (
        [read_evaluation(path) for path in sorted((folder / "evaluations").glob("*/"))][-1].metrics
        for folder in pair
    )
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - {"sampling_seconds"}:
        assert ours[name].value == pytest.approx(theirs[name].value, rel=1e-4, nan_ok=True), name


def test_evaluation_of_an_export_writes_no_report_or_summary_of_its_training(pair):
    _, exported = pair
    assert not (exported / "report.html").exists()
    assert not (exported / "summary.json").exists()


def test_analysis_of_an_export_is_written_beside_it(pair):
    _, exported = pair
    output = succeed("analyze", exported, "--num-images", 12, "--num-strips", 1)
    assert str(exported / "analysis") in output
    assert any((exported / "analysis").iterdir())


def test_a_run_is_compared_with_an_export(pair, tmp_path):
    output = succeed("compare", *pair, "--out", tmp_path / "both", "--per-class", 1)
    assert (tmp_path / "both" / "comparison.html").is_file()
    assert "exported" in output
