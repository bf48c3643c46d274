"""Check of this machine's linear algebra: a Fréchet distance whose value is known.

FID takes the square root of a product of two covariances. Broken builds of BLAS and LAPACK, two of them in one process
above all, get it wrong without a word. Covariances with common eigenvectors Q have a closed form:

    S_1 = Q diag(a) Q', S_2 = Q diag(b) Q':  distance = |m_1 - m_2|^2 + sum (sqrt(a) - sqrt(b))^2

The spectra fall by six decades, as those of Inception's features do, in opposite orders.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simflow_plugin.evaluation.fidelity import frechet_distance

DIMS = 512
TOLERANCE = 1e-6
"""Relative. Sound libraries agree to 1e-10 or better; the known failures are off by percents or give NaN."""


class FrechetCheck(NamedTuple):
    """The distance as computed, in closed form, and whether they agree."""

    found: float
    expected: float
    is_right: bool


def check_frechet(
    distance: Callable[..., float] = frechet_distance, dims: int = DIMS, seed: int = 0
) -> FrechetCheck:
    """Compute the distance of two Gaussians with random common eigenvectors.

    Args:
        distance: of (mean_1, covariance_1, mean_2, covariance_2).
        dims: F; Inception has 2048, which would take ten seconds.
        seed: of eigenvectors and means.
    """
    random = np.random.default_rng(seed)
    vectors, _ = np.linalg.qr(random.standard_normal((dims, dims)))
    spectrum = np.logspace(0, -6, dims)
    variances = spectrum, spectrum[::-1]
    covariances: list[NDArray[np.float64]] = [(vectors * of) @ vectors.T for of in variances]
    means = random.standard_normal((2, dims)) / math.sqrt(dims)
    # Not with BLAS: Python's own sum is the reference.
    shift = math.fsum((one - other) ** 2 for one, other in zip(*means.tolist(), strict=True))
    pairs = zip(*(of.tolist() for of in variances), strict=True)
    expected = shift + math.fsum((math.sqrt(a) - math.sqrt(b)) ** 2 for a, b in pairs)
    try:
        found = distance(means[0], covariances[0], means[1], covariances[1])
    except np.linalg.LinAlgError:
        found = math.nan
    return FrechetCheck(found, expected, abs(found - expected) <= TOLERANCE * expected)
