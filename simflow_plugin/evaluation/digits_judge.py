"""A judge of digit samples that our code has no part in: scikit-learn's SVC, fitted on the real 8 x 8 digits.

Class agreement: the share of samples that the judge gives the class that was asked for.

Diversity: for a class c with images x_1 .. x_n, D_c = mean over pairs i < j of ||x_i - x_j||_2, in pixels of
the 8 x 8 image; the ratio is the mean over classes of D_c(samples) / D_c(real training digits). A model that
repeats one image per class agrees well and has ratio 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist
from sklearn.svm import SVC

from simflow_plugin.errors import EvaluationError, ShapeError
from simflow_plugin.evaluation.judgement import Judgement

JUDGE_SIZE = 8
JUDGE_MAX = 16.0
GREY_WEIGHTS = np.array([0.299, 0.587, 0.114])
"""ITU-R BT.601, the weights of PIL's conversion to grey."""


def judge_digits(
    samples: NDArray[np.uint8],
    labels: NDArray[np.integer],
    train_images: NDArray[np.floating],
    train_labels: NDArray[np.integer],
    test_images: NDArray[np.floating],
    test_labels: NDArray[np.integer],
) -> Judgement:
    """Judge samples by SVC(gamma=0.001), scikit-learn's own setting for these digits.

    Args:
        samples: (N, 3, H, W) uint8, [0, 255]; H and W at least 8; tensors are accepted too.
        labels: (N,), the classes that were asked for.
        train_images: (M, 8, 8), [0, 16], the original digits, never our resizing of them.
        train_labels: (M,).
        test_images: (K, 8, 8), [0, 16], held out.
        test_labels: (K,).
    Raises:
        ShapeError: for other shapes or types.
        EvaluationError: if there is no sample, or no class with two of them.
    """
    samples, labels = np.asarray(samples), np.asarray(labels)
    train_labels, test_labels = np.asarray(train_labels), np.asarray(test_labels)
    if len(samples) == 0:
        raise EvaluationError(
            "digits judge: there is no sample to judge. Set evaluation.num_samples above 0."
        )
    if labels.shape != (len(samples),):
        raise ShapeError(f"digits judge: {len(samples)} samples but labels of shape {labels.shape}")
    train, test = _raw_rows(train_images, "train_images"), _raw_rows(test_images, "test_images")
    rows = to_judge_space(samples).reshape(len(samples), -1)
    judge = SVC(gamma=0.001).fit(train, train_labels)
    is_right = judge.predict(rows) == labels
    classes = sorted({int(label) for label in labels})
    diversity = diversity_by_class(rows, labels, train, train_labels)
    if not diversity:
        raise EvaluationError(
            "digits judge: diversity needs two samples of one class, and no class has them."
        )
    return Judgement(
        judge="scikit-learn's SVC(gamma=0.001), fitted on real training digits at 8 x 8",
        class_agreement=float(is_right.mean()),
        class_agreement_real=float((judge.predict(test) == test_labels).mean()),
        diversity_ratio=float(np.mean(list(diversity.values()))),
        agreement_by_class={label: float(is_right[labels == label].mean()) for label in classes},
        diversity_by_class=diversity,
        num_samples=len(samples),
    )


def to_judge_space(samples: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Turn uint8 images (N, 3, H, W) into grey area averages (N, 8, 8) in [0, 16].

    An output pixel averages its share of the input, pixels cut by its border by the part inside, so that any
    H, W >= 8 is exact.

    Raises:
        ShapeError: for another type, number of channels, or images below 8 pixels.
    """
    if (
        samples.dtype != np.uint8
        or samples.ndim != 4
        or samples.shape[1] != 3
        or min(samples.shape[2:]) < JUDGE_SIZE
    ):
        raise ShapeError(
            f"digits judge: samples must be uint8 (N, 3, H, W) of at least {JUDGE_SIZE} pixels; "
            f"got {samples.dtype} {samples.shape}"
        )
    grey = np.einsum("nchw,c->nhw", samples.astype(np.float64), GREY_WEIGHTS)
    rows, columns = (_area_weights(size) for size in samples.shape[2:])
    return rows @ grey @ columns.T * (JUDGE_MAX / 255.0)


def diversity_by_class(
    rows: NDArray[np.floating],
    labels: NDArray[np.integer],
    real_rows: NDArray[np.floating],
    real_labels: NDArray[np.integer],
) -> dict[int, float]:
    """Return class -> mean pairwise distance of the samples over that of real images.

    Args:
        rows: (N, P) pixels of samples.
        labels: (N,).
        real_rows: (M, P), on the same scale.
        real_labels: (M,).
    Returns:
        Only classes with two samples and two real images that differ.
    """
    ratios = {}
    for label in sorted({int(label) for label in labels}):
        ours, real = rows[labels == label], real_rows[real_labels == label]
        if len(ours) < 2 or len(real) < 2:
            continue
        real_distance = pdist(real).mean()
        if real_distance > 0:
            ratios[label] = float(pdist(ours).mean() / real_distance)
    return ratios


def _area_weights(size: int) -> NDArray[np.float64]:
    """Return (8, size): the share of each input pixel in each output pixel, rows summing to 1."""
    edges: NDArray[np.float64] = np.linspace(0, size, JUDGE_SIZE + 1, dtype=np.float64)
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return overlap.clip(min=0) * (JUDGE_SIZE / size)


def _raw_rows(images: NDArray[np.floating], name: str) -> NDArray[np.float64]:
    raw: NDArray[np.float64] = np.asarray(images, dtype=np.float64)
    if raw.ndim != 3 or raw.shape[1:] != (JUDGE_SIZE, JUDGE_SIZE):
        raise ShapeError(f"digits judge: {name} must be (N, {JUDGE_SIZE}, {JUDGE_SIZE}); got {raw.shape}")
    return raw.reshape(len(raw), -1)
