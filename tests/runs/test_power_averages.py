"""Power-function averages: the recurrence against its closed form, and lengths made afterwards."""

import numpy as np
import pytest

from simflow_plugin.errors import EvaluationError
from simflow_plugin.runs.loaded_run import load_run
from simflow_plugin.runs.power_averages import (
    Profile,
    exponent_of_length,
    inner_products,
    power_decay,
    reconstruction_weights,
)
from tests.training.tiny_runs import make_trainer, tiny_config


def weights_of_steps(exponent, num_steps):
    """Return the weight of each step in the average after `num_steps`, by the recurrence itself."""
    average = np.zeros(num_steps)
    for step in range(num_steps):
        decay = power_decay(exponent, step)
        average = decay * average + (1 - decay) * np.eye(num_steps)[step]
    return average


@pytest.mark.parametrize(("length", "exponent"), [(0.05, 16.97), (0.10, 6.94)])
def test_exponents_are_those_of_the_paper(length, exponent):
    assert exponent_of_length(length) == pytest.approx(exponent, abs=0.005)


@pytest.mark.parametrize("length", [0.02, 0.1, 0.25])
def test_recurrence_gives_each_step_the_integral_of_the_profile(length):
    exponent, num_steps = exponent_of_length(length), 200
    ends = (np.arange(num_steps + 1) / num_steps) ** (exponent + 1)
    np.testing.assert_allclose(weights_of_steps(exponent, num_steps), np.diff(ends), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("length", [0.05, 0.1, 0.2, 0.28])
def test_length_is_the_standard_deviation_of_the_profile_over_the_run(length):
    weights, steps = weights_of_steps(exponent_of_length(length), 1000), np.arange(1, 1001) - 0.5
    mean = weights @ steps
    assert np.sqrt(weights @ (steps - mean) ** 2) / 1000 == pytest.approx(length, rel=1e-3)


def test_inner_products_are_the_integrals():
    profiles = [Profile(0.5, 70), Profile(6.94, 100), Profile(16.97, 40)]
    s = (np.arange(1_000_000) + 0.5) / 1e4  # (0, 100]
    values = [
        np.where(s < p.step, (p.exponent + 1) * s**p.exponent / p.step ** (p.exponent + 1), 0)
        for p in profiles
    ]
    integrals = [[float(np.sum(a * b)) / 1e4 for b in values] for a in values]
    np.testing.assert_allclose(inner_products(profiles, profiles), integrals, rtol=1e-5)


def test_inner_products_of_long_runs_and_short_averages_stay_finite():
    profile = Profile(exponent_of_length(0.005), 2_000_000)
    exponent = profile.exponent
    expected = (exponent + 1) ** 2 / (2 * exponent + 1) / profile.step
    assert inner_products([profile], [profile])[0, 0] == pytest.approx(expected, rel=1e-6)


def stored(num_snapshots=16, num_steps=160, lengths=(0.05, 0.1)):
    steps = [num_steps * (i + 1) // num_snapshots for i in range(num_snapshots)]
    return [Profile(exponent_of_length(length), step) for step in steps for length in lengths]


def test_stored_profile_is_its_own_reconstruction():
    profiles = stored()
    weights, error = reconstruction_weights(profiles, profiles[-1])
    assert error < 1e-5
    one_hot = np.eye(len(profiles))[-1]
    np.testing.assert_allclose(weights, one_hot, atol=1e-4)


@pytest.mark.parametrize("length", [0.06, 0.075, 0.15])
def test_reconstruction_agrees_with_the_recurrence_of_that_length(length):
    profiles, num_steps = stored(), 160
    weights, error = reconstruction_weights(profiles, Profile(exponent_of_length(length), num_steps))
    made = np.zeros(num_steps)
    for weight, profile in zip(weights, profiles, strict=True):
        made[: profile.step] += weight * weights_of_steps(profile.exponent, profile.step)
    truth = weights_of_steps(exponent_of_length(length), num_steps)
    assert np.linalg.norm(made - truth) / np.linalg.norm(truth) == pytest.approx(error, abs=0.01)
    assert error < 0.05
    assert weights.sum() == pytest.approx(1.0, abs=1e-8)


def test_reconstruction_is_the_least_squares_optimum():
    profiles, target = stored(4), Profile(exponent_of_length(0.08), 160)
    weights, error = reconstruction_weights(profiles, target)
    gram = inner_products(profiles, profiles)
    aim = inner_products(profiles, [target])[:, 0]
    own = inner_products([target], [target])[0, 0]

    def squared_error(weights):
        return (weights @ gram @ weights - 2 * weights @ aim + own) / own

    assert squared_error(weights) == pytest.approx(error**2, abs=1e-9)
    for index in range(len(weights) - 1):
        for sign in (-1e-3, 1e-3):
            other = weights.copy()
            # They still add up to one.
            other[index], other[index + 1] = (other[index] + sign, other[index + 1] - sign)
            assert squared_error(other) > squared_error(weights)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """An exponential run, and one that keeps two power functions and no snapshot but its checkpoint."""
    root = tmp_path_factory.mktemp("runs")
    make_trainer(tiny_config(steps=2), root / "exponential").train()
    make_trainer(tiny_config(steps=2, ema={"kind": "power"}), root / "power").train()
    return root


def test_length_is_refused_where_there_is_none_to_choose(runs):
    with pytest.raises(EvaluationError, match=r"one exponential average.*kind: power"):
        load_run(runs / "exponential", "cpu", ema_length=0.1)
    with pytest.raises(EvaluationError, match=r"--ema-length 0\.5: expected a number between 0 and 0\.2887"):
        load_run(runs / "power", "cpu", ema_length=0.5)
    with pytest.raises(EvaluationError, match=r"--ema-length 0\.1: the last weights were asked for"):
        load_run(runs / "power", "cpu", averaged=False, ema_length=0.1)


def test_length_far_from_what_is_stored_is_made_with_a_warning(runs, caplog):
    load_run(runs / "power", "cpu", ema_length=0.2)
    assert "an average of length 0.2 is made of the 2 stored with an error of" in caplog.text
