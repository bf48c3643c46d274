"""Guidance of diffusion models: formula, interval, cost."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from simflow_plugin.contracts import NO_LABEL
from simflow_plugin.diffusion.guidance import GuidanceOptions, GuidedPrediction
from simflow_plugin.errors import ConfigError
from simflow_plugin.models.sit import SiTOptions
from simflow_plugin.registry import DIFFUSION_GUIDANCE, Part

X, T, LABELS = torch.zeros(2, 1), torch.zeros(2), torch.tensor([3, 5])


def guidance(weight: float, interval: tuple[float, float] = (0.0, 1.0)) -> GuidedPrediction:
    rule = Part.model_validate({"name": "classifier_free", "interval": interval})
    return GuidedPrediction(rule.build(DIFFUSION_GUIDANCE, None), weight)


def label_as_prediction(x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    """Predict the label itself, -1 for none, so that the guided value can be computed by hand."""
    return labels[:, None].float() if labels is not None else torch.full_like(x, NO_LABEL)


def test_weight_extrapolates_from_unconditional_to_conditional() -> None:
    guided = guidance(0.5)(label_as_prediction, X, T, 0.3, LABELS)
    torch.testing.assert_close(guided[:, 0], LABELS + 0.5 * (LABELS - NO_LABEL))


@pytest.mark.parametrize(("time", "acts"), [(0.19, False), (0.2, True), (0.7, True), (0.71, False)])
def test_guidance_acts_within_its_interval_only(time: float, acts: bool) -> None:
    guided = guidance(2.0, (0.2, 0.7))(label_as_prediction, X, T, time, LABELS)
    assert (guided[0, 0] != LABELS[0]) == acts


@pytest.mark.parametrize(("weight", "rows"), [(0.0, 2), (1.0, 4)])
def test_no_guidance_costs_one_pass(weight: float, rows: int) -> None:
    seen = []

    def predict(x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        seen.append(len(x))
        return x

    guidance(weight)(predict, X, T, 0.5, LABELS)
    assert seen == [rows]


@pytest.mark.parametrize("interval", [(-0.1, 0.5), (0.2, 1.1), (0.6, 0.4), (0.5, 0.5), (float("nan"), 1.0)])
def test_interval_outside_zero_to_one_is_refused(interval: tuple[float, float]) -> None:
    with pytest.raises(ValidationError, match="with low < high|finite number"):
        GuidanceOptions(interval=interval)


@pytest.mark.parametrize("weight", [-0.5, float("nan"), float("inf")])
def test_weight_that_is_negative_or_not_finite_is_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match="guidance is"):
        guidance(weight)


RULE = """
from simflow_plugin.diffusion.guidance import GuidanceRule

class Rescaled(GuidanceRule):
    def combine(self, conditional, unconditional, weight, time):
        return conditional * (1 + weight * time)
"""


def test_a_rule_of_another_package_guides_by_its_name(install) -> None:
    install("rescaled-guidance", "rescaled_guidance", RULE, "rescaled", "Rescaled", "diffusion_guidance")
    options = SiTOptions.model_validate({"sampling": {"guidance_rule": "rescaled"}})
    rule = options.sampling.guidance_rule.build(DIFFUSION_GUIDANCE, None)
    guided = GuidedPrediction(rule, 2.0)(label_as_prediction, X, T, 0.5, LABELS)
    torch.testing.assert_close(guided[:, 0], 2.0 * LABELS)
