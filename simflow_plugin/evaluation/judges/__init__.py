"""Judges of samples: independent classifiers that count samples of the requested class.

A judge is a part: registered by name, built as `factory(options, context)`, named by `evaluation.judge`.

Class agreement: the share of samples that the judge gives the class that was asked for.

Diversity: for a class c with images x_1 .. x_n, D_c = mean over pairs i < j of ||x_i - x_j||_2 in grey pixels;
the ratio is the mean over classes of D_c(samples) / D_c(real images). A model that repeats one image per class
agrees well and has ratio 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from simflow_plugin.contracts import ImageDataset
from simflow_plugin.evaluation.judge_options import JudgeFacts


@dataclass(frozen=True)
class Judgement:
    """Findings of a judge on samples.

    Args:
        judge: its description: `SVC(gamma=0.001), fitted on real digits`.
        class_agreement: share of samples given the class that was asked for, in [0, 1].
        class_agreement_real: the same for real held-out images and their labels: the judge's own accuracy.
        agreement_by_class: class -> share.
        diversity_by_class: class -> D_c(samples) / D_c(real); classes with fewer than two samples are left out.
        num_samples: judged.
    """

    judge: str
    class_agreement: float
    class_agreement_real: float
    agreement_by_class: dict[int, float]
    diversity_by_class: dict[int, float]
    num_samples: int

    @property
    def diversity_ratio(self) -> float:
        """Mean over classes of `diversity_by_class`; NaN where no class has two samples."""
        ratios = list(self.diversity_by_class.values())
        return float(np.mean(ratios)) if ratios else float("nan")


class Judge(JudgeFacts, Protocol):
    """A judge, built as `factory(options, DataContext)`: loading its files is part of being built."""

    def __call__(self, samples: Tensor, labels: Tensor, train: ImageDataset, test: ImageDataset) -> Judgement:
        """Judge samples.

        Args:
            samples: uint8 (N, H, W, 3).
            labels: (N,) int64, the classes that were asked for.
            train: real training images.
            test: real held-out images.
        Raises:
            EvaluationError: without samples, or if the judge knows other classes than the data set.
        """


def agreement_by_class(is_right: NDArray[np.bool_], labels: NDArray[np.integer]) -> dict[int, float]:
    """Return class -> share of right answers; both arguments are (N,)."""
    return {int(label): float(is_right[labels == label].mean()) for label in np.unique(labels)}


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
    from scipy.spatial.distance import pdist

    ratios = {}
    for label in sorted({int(label) for label in labels}):
        ours, real = rows[labels == label], real_rows[real_labels == label]
        if len(ours) < 2 or len(real) < 2:
            continue
        real_distance = pdist(real).mean()
        if real_distance > 0:
            ratios[label] = float(pdist(ours).mean() / real_distance)
    return ratios
