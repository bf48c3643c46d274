"""What the table of a study shows is what a real run's measurement gives: no column stays empty for a wrong name."""

from pathlib import Path

import pytest

from simflow_plugin.runs.run_directory import RunDirectory
from simflow_plugin.studies.definitions import Study, Variant
from simflow_plugin.studies.stages import StudySettings, measure_real, measure_variant
from simflow_plugin.studies.table import to_markdown
from tests.evaluation.judges import make_judge
from tests.training.tiny_runs import make_trainer, tiny_config

STUDY = Study("tiny", "Tiny", (), (Variant("one", "the one"),), (0.0, 0.5))


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    config = tiny_config("simflow", steps=2)
    run = RunDirectory(folder / "runs" / "one")
    run.prepare(config, [])
    make_trainer(config, run.path).train()
    settings = StudySettings(folder, Path(make_judge(folder / "judge.safetensors", 10)), 1.0, 24, 16)
    return {
        "settings": settings.what_decides(),
        "autoencoders": {},
        "variants": {"one": measure_variant(run, settings, STUDY.guidance)},
        "real": measure_real(config, settings),
    }


def test_every_column_of_a_flow_is_filled(document):
    lines = to_markdown(STUDY, document).splitlines()
    head, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|")
    assert len(rows) == 1 + len(STUDY.guidance)
    for row in rows[1:]:
        assert "-" not in row, dict(zip(head, row, strict=True))


def test_class_agreement_has_an_interval_and_real_images_their_own(document):
    low, high = document["variants"]["one"]["intervals"]["0"]["class_agreement"]
    assert low <= document["variants"]["one"]["metrics"]["0"]["class_agreement"] <= high
    assert set(document["real"]) == {"fd_pretrained", "class_agreement"}
