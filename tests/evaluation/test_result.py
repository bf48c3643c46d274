from pathlib import Path

from simflow_plugin.evaluation.result import Evaluation, Measured, read_evaluation


def evaluation(folder: Path, **notes: list[str]) -> Evaluation:
    return Evaluation(folder, {}, {part: Measured(1.0) for part in notes}, {}, notes)


def test_notes_of_an_earlier_evaluation_go_with_the_numbers_they_are_on(tmp_path):
    evaluation(tmp_path, likelihood=["of noisy latents"], generation=["not judged: no file"]).save()
    evaluation(tmp_path, generation=[]).save()
    found = read_evaluation(tmp_path)
    assert found.notes == ["of noisy latents"]
    assert set(found.metrics) == {"likelihood", "generation"}


def test_a_note_is_shown_once(tmp_path):
    assert evaluation(tmp_path, a=["same"], b=["same"]).notes == ["same"]


def test_result_of_version_0_1_0_is_read(tmp_path):
    (tmp_path / "result.json").write_text('{"settings": {}, "metrics": {}, "notes": ["old"]}')
    found = read_evaluation(tmp_path)
    assert (found.notes, found.details) == (["old"], {})
