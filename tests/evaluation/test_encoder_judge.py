"""The pretrained classifier as judge of samples."""

import pytest
import torch

from simflow_plugin.contracts import DataContext
from simflow_plugin.data.digits import Digits
from simflow_plugin.data.order import sample_rows
from simflow_plugin.errors import EvaluationError
from simflow_plugin.evaluation.judges.pretrained_classifier import EncoderJudge
from tests.evaluation.judges import make_judge


def judge(path, images, labels, held_out, num_classes=10, num_real=40):
    options = EncoderJudge.Options(
        checkpoint=make_judge(path / "judge.safetensors", num_classes), num_real=num_real
    )
    return EncoderJudge(options, DataContext(8, "test"))(images, labels, held_out, held_out)


@pytest.fixture(scope="module")
def held_out():
    return Digits(Digits.Options(), DataContext(8, "test"))


def test_real_images_as_samples_agree_as_often_as_real_images(held_out, tmp_path):
    rows = sample_rows(len(held_out), 40)  # those that the judge looks at
    images = torch.stack([held_out[i].image for i in rows]).permute(0, 2, 3, 1)
    labels = torch.tensor([held_out[i].label for i in rows])
    judgement = judge(tmp_path, images, labels, held_out)
    assert judgement.class_agreement == judgement.class_agreement_real
    assert judgement.diversity_ratio == pytest.approx(1.0)
    assert judgement.num_samples == 40


def test_judge_of_other_classes_is_refused(held_out, tmp_path):
    with pytest.raises(EvaluationError, match=r"knows 3 classes \(digits\), but the data set has 10"):
        judge(tmp_path, torch.zeros(2, 8, 8, 3, dtype=torch.uint8), torch.zeros(2).long(), held_out, 3)


def test_samples_without_classes_are_refused(held_out, tmp_path):
    unlabelled = torch.full((2,), -1)
    with pytest.raises(EvaluationError, match="needs samples of known classes"):
        judge(tmp_path, torch.zeros(2, 8, 8, 3, dtype=torch.uint8), unlabelled, held_out)
