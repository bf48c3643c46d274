"""Samples and scores that are no numbers are refused: they become no black image and enter no mean."""

import logging

import pytest
import torch

from simflow_plugin.errors import EvaluationError
from simflow_plugin.evaluation.drawing import ImageSampler, to_uint8
from simflow_plugin.evaluation.held_out import refuse_not_finite
from simflow_plugin.runs.run_precision import Precision
from tests.training.tiny_runs import make_trainer, tiny_config
from tests.training.toys import LinearAutoencoder, LinearModel


class Diverged(LinearModel):
    """Every sample whose index is odd is broken."""

    value = float("nan")

    def sample(self, labels, shape, guidance, random):
        latents = torch.zeros(tuple(shape))
        latents[1::2, 0, 0, 0] = self.value
        return latents


def sampler(model):
    return ImageSampler(LinearAutoencoder(), model, 8, Precision("float32", False, "cpu"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_sample_that_is_not_finite_is_refused_by_index(value):
    model = Diverged()
    model.value = value
    labels = torch.full((4,), -1)
    with pytest.raises(
        EvaluationError, match=r"2 of 4 samples are not finite .* sample 7: neither written nor"
    ):
        sampler(model).draw([6, 7, 8, 9], labels)
    assert sampler(model).draw([6], labels[:1]).isfinite().all()


def test_pixels_are_never_made_of_nan():
    images = torch.zeros(3, 3, 2, 2)
    images[1, 0, 0, 0] = float("nan")
    with pytest.raises(EvaluationError, match="1 of 3 images are not finite"):
        to_uint8(images)


def test_likelihood_that_is_not_finite_is_refused_by_image():
    scores = torch.tensor([[1.0, 2.0], [float("-inf"), 1.0]])
    with pytest.raises(
        EvaluationError, match="digits: the likelihood of 1 of 2 images is not finite, .* image 9"
    ):
        refuse_not_finite(scores, torch.tensor([4, 9]), "digits")
    refuse_not_finite(scores[:1], torch.tensor([4]), "digits")


def test_no_grid_is_written_of_a_model_that_diverged(tmp_path, caplog):
    trainer = make_trainer(tiny_config(), tmp_path / "run")
    with torch.no_grad():
        for average in trainer.averages.main.average.values():
            average.fill_(float("nan"))
    with caplog.at_level(logging.WARNING):
        trainer.sample_grids.save(3, trainer.joint, trainer.averages.main)
    assert "No grid of samples at step 3" in caplog.text
    assert not list((tmp_path / "run").rglob("*.png"))
