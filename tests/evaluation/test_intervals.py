"""Intervals against their closed forms."""

import numpy as np
import pytest

from simflow_plugin.errors import EvaluationError
from simflow_plugin.evaluation.intervals import bootstrap_mean, proportion, repeated
from simflow_plugin.evaluation.result import Measured


def test_bootstrap_of_a_mean_has_the_normal_width():
    values = np.random.default_rng(0).normal(size=2000)
    found = bootstrap_mean(values)
    assert found.high - found.low == pytest.approx(2 * 1.96 / np.sqrt(2000), rel=0.1)
    assert found.low < found.value < found.high


def test_bootstrap_of_a_constant_has_no_width():
    assert bootstrap_mean(np.full(5, 0.7)).low == pytest.approx(0.7)


def test_interval_of_the_same_values_is_the_same():
    values = np.random.default_rng(0).normal(size=50)
    assert bootstrap_mean(values) == bootstrap_mean(values)


def test_two_seeds_have_student_interval():
    found = repeated([1.0, 3.0])
    assert found.value == 2.0
    # t(0.975, 1) times the standard error, 1.
    assert found.high - found.value == pytest.approx(12.7062, rel=1e-4)


def test_share_of_all_has_an_interval_below_one():
    """Wilson's, in closed form at n of n: n / (n + z^2)."""
    number = proportion(50, 50)
    z = 1.959963984540054
    assert (number.value, number.high) == (1.0, pytest.approx(1.0))
    assert number.low == pytest.approx(50 / (50 + z**2), rel=1e-6)


def test_one_seed_has_no_interval():
    assert repeated([1.0]) == Measured(1.0)


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        (lambda: bootstrap_mean(np.array([])), "no values"),
        (lambda: repeated([]), "no values"),
        (lambda: proportion(0, 0), "a share of 0 samples"),
    ],
    ids=["bootstrap", "seeds", "share"],
)
def test_no_values_are_refused(interval, said):
    with pytest.raises(EvaluationError, match=said):
        interval()


def test_numbers_survive_json():
    number = Measured(1.0, 0.5, 1.5, "note", "data", "warning")
    assert Measured.from_json(number.to_json() | {"new": 1}) == number
