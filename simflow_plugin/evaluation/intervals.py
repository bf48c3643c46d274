"""Intervals for measured means: percentile bootstrap over images, and Student's t over repeated seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from simflow_plugin.errors import EvaluationError
from simflow_plugin.evaluation.result import Measured
from simflow_plugin.randomness import derive_seed

LEVEL = 0.95
NUM_RESAMPLES = 1000


def bootstrap_mean(values: NDArray[np.floating]) -> Measured:
    """Return the mean of per-image values (N,) with its percentile bootstrap interval.

    Raises:
        EvaluationError: without values.
    """
    array = np.asarray(values, dtype=np.float64)
    low, high = bootstrap(array)
    return Measured(float(array.mean()), low, high, f"bootstrap of {len(array)} images")


def bootstrap(values: NDArray[np.floating]) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the mean of values (N,).

    Raises:
        EvaluationError: without values.
    Reference:
        Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    if len(values) == 0:
        raise EvaluationError("an interval was asked for, but there are no values.")
    generator = np.random.default_rng(derive_seed(0, "bootstrap"))
    found = []
    # In parts: indices of all resamples of many images do not fit into memory.
    for start in range(0, NUM_RESAMPLES, 100):
        rows = generator.integers(0, len(values), (min(100, NUM_RESAMPLES - start), len(values)))
        found.append(values[rows].mean(axis=-1))
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(np.concatenate(found), [tail, 1 - tail])
    return float(low), float(high)


def repeated(values: Sequence[float]) -> Measured:
    """Return the mean over repeated seeds with Student's 95 % interval; one value has no interval.

    Raises:
        EvaluationError: without values.
    """
    if len(values) == 0:
        raise EvaluationError("an interval was asked for, but there are no values.")
    mean = float(np.mean(values))
    if len(values) == 1:
        return Measured(mean)
    half = t_quantile(len(values)) * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return Measured(mean, mean - half, mean + half, f"t interval of {len(values)} seeds")


def t_quantile(count: int) -> float:
    """Return how many standard errors half of a 95 % interval of the mean of `count` independent numbers is."""
    return float(stats.t.ppf((1 + LEVEL) / 2, count - 1))


def proportion(num_right: int, count: int, unit: str = "samples") -> Measured:
    """Return a share with Wilson's 95 % interval, which has a width at 0 and at 1 too.

    Raises:
        EvaluationError: of nothing.
    Reference:
        Wilson, Probable inference, the law of succession, and statistical inference, 1927.
    """
    if count < 1:
        raise EvaluationError(f"a share of {count} {unit} was asked for; one is the least.")
    interval = stats.binomtest(num_right, count).proportion_ci(LEVEL, "wilson")
    return Measured(
        num_right / count, float(interval.low), float(interval.high), f"Wilson's of {count} {unit}"
    )
