"""Classification by likelihood against Bayes' rule in closed form, and on a run."""

import csv

import pytest
import torch

import simflow_plugin
from simflow_plugin.errors import EvaluationError
from simflow_plugin.evaluation.classification import Classified, class_log_probs, measure_classification
from tests.evaluation.runs import copy_run, evaluate
from tests.training.toys import DensityOnly

MEANS = torch.tensor([-1.0, 0.0, 2.0])


class Gaussians(DensityOnly):
    """p(z given y) = N(means[y], 1) in every dimension."""

    def log_prob(self, latents, labels):
        centred = latents.flatten(1) - MEANS[labels][:, None]
        return torch.distributions.Normal(0.0, 1.0).log_prob(centred).sum(1)


@pytest.mark.parametrize("rows_at_once", [None, 2])
def test_prediction_is_the_nearest_mean(rows_at_once):
    latents = torch.tensor([-2.0, -0.2, 0.9, 1.1]).view(4, 1, 1, 1)
    log_probs = class_log_probs(Gaussians(), latents, 3, rows_at_once)
    assert log_probs.argmax(1).tolist() == [0, 1, 1, 2]
    expected = -0.5 * (latents.view(4, 1) - MEANS) ** 2 - 0.5 * torch.tensor(2 * torch.pi).log()
    torch.testing.assert_close(log_probs.float(), expected)


def test_accuracy_has_its_interval_and_every_image_a_row(tmp_path):
    log_probs = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    labels, indices = torch.tensor([1, 0, 1, 0]), torch.tensor([5, 6, 7, 8])
    found = Classified(indices, labels, log_probs.argmax(1), log_probs)
    number = measure_classification(found, "4 images", tmp_path / "a.csv")["classification_accuracy"]
    assert number.value == 0.75
    assert 0.3 < number.low < number.value < number.high < 0.96
    assert "chance 50.0%" in number.on
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [row["index"] for row in rows] == ["5", "6", "7", "8"]
    assert [row["predicted"] for row in rows] == ["1", "0", "1", "1"]


def test_run_is_classified_with_the_likelihood_of_the_evaluation(flow_run, tmp_path):
    run = copy_run(flow_run, tmp_path / "run")
    found = evaluate(run, parts=("classification", "likelihood"), num_held_out=6, posterior_samples=1)
    assert found.metrics["classification_accuracy"].interval == "Wilson's of 6 images"
    folder = found.folder
    by_class, scored = (
        list(csv.DictReader((folder / name).open())) for name in ("classification.csv", "scores.csv")
    )
    for own, score in zip(by_class, scored, strict=True):
        assert own["index"] == score["index"]


def test_python_gives_the_likelihood_of_every_class(flow_run):
    run = simflow_plugin.load(flow_run, device="cpu")
    images = run.sample(["1", "2", "3"])
    by_class = run.log_prob_by_class(images, draws=1)
    assert by_class.shape == (3, 10)
    difference = run.log_prob(images, "4", draws=1) - run.log_prob(images, "7", draws=1)
    torch.testing.assert_close(by_class[:, 4] - by_class[:, 7], difference, rtol=1e-3, atol=1e-3)


def test_model_without_a_density_is_refused_at_once(diffusion_run):
    with pytest.raises(EvaluationError, match=r"\(--classify\) needs a model with an exact density"):
        evaluate(diffusion_run, classify=True)
