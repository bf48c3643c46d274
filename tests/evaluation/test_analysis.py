"""Analysis of a run: every part there, on held-out images; models without a flow have no flow part."""

import json

import pytest
import torch

from simflow_plugin.errors import EvaluationError
from simflow_plugin.evaluation.analysis import TOLERANCES, AnalysisRequest, analyze_run
from simflow_plugin.runs.loaded_run import load_run

SMALL = AnalysisRequest(num_images=12, num_strips=2, num_steps=5)


@pytest.fixture(scope="module")
def analysis(flow_run):
    return analyze_run(load_run(flow_run, "cpu"), SMALL)


def test_statistics_are_of_means_and_of_samples(analysis):
    assert len(analysis.metrics) == 8
    for name in ("spectral_entropy", "high_frequency_ratio"):
        assert 0 < analysis.metrics[name].value < 1
        assert "12 held-out images" in analysis.metrics[f"{name}_of_samples"].on


def test_samples_of_a_noisy_posterior_are_rougher_than_its_means(analysis):
    found = analysis.metrics
    assert found["autocorrelation_of_samples"].value < found["autocorrelation"].value


def test_robustness_starts_at_the_plain_reconstruction(analysis):
    curve = analysis.robustness["psnr"]
    values = [number.value for number in curve.values()]
    assert next(iter(curve)) == 0.0
    assert values[0] > values[-1]
    assert analysis.posterior_std == pytest.approx(0.5)


def test_white_noise_of_a_small_grid_is_measured_on_that_grid(analysis):
    """On 4 x 4 positions 0.73 of its power is above half the Nyquist frequency; the limit for large grids is 0.80."""
    assert analysis.white_noise["high_frequency_ratio"] == pytest.approx(0.73, abs=0.02)
    assert analysis.white_noise["autocorrelation"] == pytest.approx(0, abs=0.1)


def test_strips_are_images(analysis):
    assert analysis.strips.shape == (2, 5, 3, 8, 8)
    assert analysis.strips.abs().max() <= 1


def test_flow_is_diagnosed_block_by_block(analysis):
    assert len(analysis.flow.logdet_per_dim) == 2
    assert set(analysis.jacobi) == set(TOLERANCES)
    assert all(1 <= count <= analysis.num_tokens for counts in analysis.jacobi.values() for count in counts)


def test_flow_of_noisy_latents_is_diagnosed_on_noisy_latents(noisy_run, monkeypatch):
    """STARFlow never saw clean ones. An identity flow shows the latents it is given: their variance is larger."""
    loaded = load_run(noisy_run, "cpu")
    variances = []
    for noise_std in (0.0, 3.0):
        loaded.model.noise_std = noise_std
        shown = []

        def tokens(latents, shown=shown):
            shown.append(latents)
            return type(loaded.model).tokens(loaded.model, latents)

        monkeypatch.setattr(loaded.model, "tokens", tokens)
        analyze_run(loaded, SMALL)
        variances.append(float(shown[0].var()))
    assert variances[1] - variances[0] == pytest.approx(9.0, rel=0.2)


def test_numbers_do_not_depend_on_the_batches(flow_run, analysis):
    again = analyze_run(load_run(flow_run, "cpu"), AnalysisRequest(12, 2, 5, batch_size=5))
    assert again.metrics["autocorrelation_of_samples"].value == pytest.approx(
        analysis.metrics["autocorrelation_of_samples"].value, abs=1e-3
    )
    torch.testing.assert_close(again.strips, analysis.strips, atol=1e-3, rtol=0)


def test_all_numbers_are_json(analysis):
    document = json.loads(json.dumps(analysis.to_json()))
    assert {"metrics", "robustness_by_noise_std", "flow", "jacobi_iterations_by_tolerance"} <= set(document)


def test_model_without_a_flow_has_no_flow_part(diffusion_run):
    found = analyze_run(load_run(diffusion_run, "cpu"), SMALL)
    assert found.flow is None
    assert found.jacobi is None
    assert "flow" not in found.to_json()


def test_one_image_is_refused(flow_run):
    with pytest.raises(EvaluationError, match="1 held-out images"):
        analyze_run(load_run(flow_run, "cpu"), AnalysisRequest(num_images=1))
