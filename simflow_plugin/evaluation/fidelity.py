"""Distances of samples to real images in a feature space: FID, sFID, KID, IS, precision and recall, by torch-fidelity.

    Fréchet distance = |m_1 - m_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))

FID is that distance for Inception's pooled features and for nothing else. Precision and recall are those of k-nearest
neighbours, k = 3, on the same features, as in the ADM evaluation suite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from simflow_plugin.errors import EvaluationError
from simflow_plugin.evaluation.extractors import Extractor, ImageFeatures
from simflow_plugin.evaluation.intervals import t_quantile
from simflow_plugin.evaluation.result import Measured
from simflow_plugin.randomness import named_generator

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
IS_SPLITS = 10
FEWEST_REAL = 5_000
"""Real images; published distances are to 10,000 (ADM's reference batch) or more."""
BLOCKS, MIN_BLOCK = 10, 20
"""Disjoint parts that KID's interval is measured on, and the least rows of one."""
NEIGHBOURS = 3
USUAL_SAMPLES = {
    "fid": 50_000,
    "sfid": 50_000,
    "kid": 5_000,
    "is": 50_000,
    "precision": 10_000,
    "recall": 10_000,
}
"""Samples that published numbers are measured on; fewer get a warning in the table."""
OTHER_NAMES = {
    "fid": "fd",
    "rfid": "rfd",
    "fid_to_reconstructions": "fd_to_reconstructions",
    "kid": "kd",
}
"""Of metrics in other features than Inception's."""
CHECK_TOLERANCE = 1e-6
"""Relative. Sound libraries agree to 1e-10 or better; the known failures are off by percents or give NaN."""


class Moments(NamedTuple):
    """Mean (F,) and covariance (F, F), float64."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]


def extract(
    extractor: Extractor, batches: Iterable[Tensor], advance: Callable[[int], None] = lambda count: None
) -> ImageFeatures:
    """Return the features of all images.

    Args:
        batches: uint8 (B, 3, H, W).
    Raises:
        EvaluationError: if there is no image.
    """
    found = []
    for images in batches:
        found.append(extractor(images))
        advance(len(images))
    if not found:
        raise EvaluationError(f"{extractor.name}: there are no images to extract features of.")
    return ImageFeatures.concatenate(found)


def fidelity(
    samples: ImageFeatures, real: ImageFeatures, extractor: Extractor, seed: int = 0
) -> dict[str, Measured]:
    """Return the metrics of samples against real images, by name.

    Args:
        seed: of KID's subsets and of IS's splits.
    Returns:
        `fid`, `sfid`, `kid`, `is`, `precision`, `recall`; with another extractor than Inception `fd_<extractor>`,
        `kd_<extractor>`, `precision_<extractor>`, `recall_<extractor>`. Too few samples give a `warning`.
    Raises:
        EvaluationError: if there are fewer than two samples or real images, or a feature is not finite.
    """
    num_samples, num_real = len(samples.pooled), len(real.pooled)
    if min(num_samples, num_real) < 2:
        raise EvaluationError(
            f"{extractor.name}: {num_samples} samples against {num_real} real images; two of each are the least that "
            "any of these metrics is defined for. Use --num-samples."
        )
    for name, features in (("samples", samples), ("real images", real)):
        if not torch.isfinite(features.pooled).all():
            raise EvaluationError(
                f"{extractor.name}: features of the {name} are not finite; are these its weights?"
            )
    dims = samples.pooled.shape[1]
    found = {"fid": Measured(frechet(samples.pooled, real.pooled)), **_kernel_distance(samples, real, seed)}
    found |= _precision_recall(samples, real)
    if extractor.is_inception:
        assert samples.spatial is not None
        assert real.spatial is not None
        found["sfid"] = Measured(frechet(samples.spatial, real.spatial))
        found["is"] = inception_score(samples, seed)
    for name, number in found.items():
        found[name] = number.with_notes(warning=few_samples_warning(name, num_samples, num_real, dims))
    return named_after(extractor, found)


def named_after(extractor: Extractor, found: dict[str, Measured]) -> dict[str, Measured]:
    """Return metrics under the names that they have with an extractor: `fid` is Inception's alone."""
    if extractor.is_inception:
        return found
    return {f"{OTHER_NAMES.get(name, name)}_{extractor.suffix}": number for name, number in found.items()}


def distance(samples: ImageFeatures, reference: ImageFeatures) -> Measured:
    """Return the Fréchet distance of pooled features, with a warning where there are too few images for one.

    Against real images it is FID's number; against reconstructions of held-out images it is what is left of it when
    the autoencoder is given: how far the model is from the latents that it was to learn.
    """
    (num_samples, dims), num_real = samples.pooled.shape, len(reference.pooled)
    warning = few_samples_warning("fid", num_samples, num_real, dims)
    return Measured(frechet(samples.pooled, reference.pooled), warning=warning)


def frechet(features_1: Tensor, features_2: Tensor) -> float:
    """Return the Fréchet distance of the Gaussians that fit two sets of features (N, F), in float64."""
    return frechet_distance(moments_of(features_1), moments_of(features_2))


def frechet_distance(first: Moments, second: Moments) -> float:
    """Return the squared Fréchet (2-Wasserstein) distance of two Gaussians.

    Reference:
        Heusel et al., arXiv:1706.08500, equation 6.
    """
    both = ({"mu": moments.mean, "sigma": moments.covariance} for moments in (first, second))
    return float(fid_statistics_to_metric(*both, verbose=False)[KEY_METRIC_FID])


def moments_of(features: Tensor) -> Moments:
    """Return mean (F,) and covariance (F, F) of features (N, F), in float64."""
    found = fid_features_to_statistics(features.double())  # float32 means of 50,000 rows lose the last digits
    return Moments(np.atleast_1d(found["mu"]), np.atleast_2d(found["sigma"]))


def check_frechet(
    distance: Callable[[Moments, Moments], float] = frechet_distance, dims: int = 512, seed: int = 0
) -> tuple[float, float, bool]:
    """Check this machine's linear algebra on a Fréchet distance whose value is known.

    FID takes the square root of a product of two covariances. Broken builds of BLAS and LAPACK, two of them in one
    process above all, get it wrong without a word. Covariances with common eigenvectors Q have a closed form:

        S_1 = Q diag(a) Q', S_2 = Q diag(b) Q':  distance = |m_1 - m_2|^2 + sum (sqrt(a) - sqrt(b))^2

    The spectra fall by six decades, as those of Inception's features do, in opposite orders.

    Args:
        dims: F; Inception has 2048, which would take ten seconds.
    Returns:
        the distance as computed, in closed form, and whether they agree.
    """
    random = np.random.default_rng(seed)
    vectors, _ = np.linalg.qr(random.standard_normal((dims, dims)))
    spectrum = np.logspace(0, -6, dims)
    variances = spectrum, spectrum[::-1]
    means = random.standard_normal((2, dims)) / math.sqrt(dims)
    # Not with BLAS: Python's own sum is the reference.
    shift = math.fsum((one - other) ** 2 for one, other in zip(*means.tolist(), strict=True))
    pairs = zip(*(of.tolist() for of in variances), strict=True)
    expected = shift + math.fsum((math.sqrt(a) - math.sqrt(b)) ** 2 for a, b in pairs)
    first, second = (
        Moments(mean, (vectors * of) @ vectors.T) for mean, of in zip(means, variances, strict=True)
    )
    try:
        found = distance(first, second)
    except np.linalg.LinAlgError:
        found = math.nan
    return found, expected, abs(found - expected) <= CHECK_TOLERANCE * expected


def _kernel_distance(samples: ImageFeatures, real: ImageFeatures, seed: int) -> dict[str, Measured]:
    size = min(KID_SUBSET_SIZE, len(samples.pooled), len(real.pooled))
    found = kid_features_to_metric(
        samples.pooled,
        real.pooled,
        kid_subsets=KID_SUBSETS,
        kid_subset_size=size,
        rng_seed=seed,
        verbose=False,
    )
    value = found[KEY_METRIC_KID_MEAN]
    if min(len(samples.pooled), len(real.pooled)) < BLOCKS * MIN_BLOCK:
        return {"kid": Measured(value)}
    # The subsets overlap, so that their spread says nothing of other samples; disjoint blocks are independent.
    generator = named_generator(seed, "kid_blocks")
    blocks = [
        part.pooled[torch.randperm(len(part.pooled), generator=generator)].chunk(BLOCKS)
        for part in (samples, real)
    ]
    by_block = [
        kid_features_to_metric(
            *pair, kid_subsets=1, kid_subset_size=min(map(len, pair)), rng_seed=seed, verbose=False
        )[KEY_METRIC_KID_MEAN]
        for pair in zip(*blocks, strict=True)
    ]
    half = t_quantile(BLOCKS) * float(np.std(by_block, ddof=1)) / BLOCKS**0.5
    return {"kid": Measured(value, value - half, value + half, f"t interval of {BLOCKS} disjoint blocks")}


def inception_score(samples: ImageFeatures, seed: int) -> Measured:
    """Return the Inception score of samples that have logits, its splits drawn from `seed`."""
    assert samples.logits is not None
    splits = min(IS_SPLITS, len(samples.logits))
    found = isc_features_to_metric(samples.logits, splits=splits, rng_seed=seed)
    value = found[KEY_METRIC_ISC_MEAN]
    # torch-fidelity's variance is divided by the number of splits, not by one less.
    half = t_quantile(splits) * found[KEY_METRIC_ISC_STD] / (splits - 1) ** 0.5
    return Measured(value, value - half, value + half, f"t interval of {splits} splits")


def _precision_recall(samples: ImageFeatures, real: ImageFeatures) -> dict[str, Measured]:
    neighbours = min(NEIGHBOURS, len(samples.pooled) - 1, len(real.pooled) - 1)
    found = prc_features_to_metric(
        samples.pooled, real.pooled, prc_neighborhood=neighbours, save_cpu_ram=True, verbose=False
    )
    return {"precision": Measured(found[KEY_METRIC_PRECISION]), "recall": Measured(found[KEY_METRIC_RECALL])}


def few_samples_warning(name: str, num_samples: int, num_real: int, dims: int) -> str:
    """Return the warning beside a metric that too few images were measured for, or nothing.

    Args:
        name: a key of `USUAL_SAMPLES`.
        dims: of the features.
    """
    fewest = min(num_samples, num_real)
    which = f"{fewest:,} {'samples' if num_samples <= num_real else 'real images'}"
    if name in ("fid", "sfid") and fewest <= dims:
        return f"{which} for {dims:,} dims: the covariance is singular; do not quote"
    if num_samples < USUAL_SAMPLES[name]:
        return f"{num_samples:,} samples, published with {USUAL_SAMPLES[name]:,}"
    if num_real < FEWEST_REAL and name != "is":
        return f"{num_real:,} real images: the distance to so few is biased"
    return ""
