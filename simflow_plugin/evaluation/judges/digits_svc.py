"""A judge of digit samples: scikit-learn's SVC, fitted on the real 8 x 8 digits; no code of ours is in it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from simflow_plugin import registry
from simflow_plugin.contracts import DataContext, ImageDataset
from simflow_plugin.errors import EvaluationError, ShapeError
from simflow_plugin.evaluation.judge_options import DigitsJudgeFacts, DigitsJudgeOptions
from simflow_plugin.evaluation.judges import Judgement, agreement_by_class, diversity_by_class

JUDGE_SIZE = 8
JUDGE_MAX = 16.0
GREY_WEIGHTS = np.array([0.299, 0.587, 0.114])
"""ITU-R BT.601, the weights of PIL's conversion to grey."""


@registry.JUDGES.register("digits")
class DigitsJudge(DigitsJudgeFacts):
    """SVC(gamma=0.001), scikit-learn's own setting, on the original digits, never on our resizing of them."""

    def __init__(self, options: DigitsJudgeOptions, context: DataContext) -> None:
        pass

    def __call__(self, samples: Tensor, labels: Tensor, train: ImageDataset, test: ImageDataset) -> Judgement:
        real: list[NDArray[Any]] = []
        for dataset in (train, test):
            originals: Any = getattr(dataset, "raw_images", None)
            if originals is None:
                raise EvaluationError("evaluation.judge: digits judges the data set `digits` only.")
            real += [originals, np.asarray(dataset.labels)]  # type: ignore[attr-defined]
        pixels = np.ascontiguousarray(samples.permute(0, 3, 1, 2).numpy())
        return judge_digits(pixels, labels.numpy(), *real)


def judge_digits(
    samples: NDArray[np.uint8],
    labels: NDArray[np.integer],
    train_images: NDArray[np.floating],
    train_labels: NDArray[np.integer],
    test_images: NDArray[np.floating],
    test_labels: NDArray[np.integer],
) -> Judgement:
    """Fit the judge on real digits, and let it judge samples.

    Args:
        samples: (N, 3, H, W) uint8, [0, 255]; H and W at least 8.
        labels: (N,), the classes that were asked for.
        train_images: (M, 8, 8), [0, 16], the original digits.
        train_labels: (M,).
        test_images: (K, 8, 8), [0, 16], held out.
        test_labels: (K,).
    Raises:
        ShapeError: for other shapes or types.
        EvaluationError: if there is no sample, or no class with two of them.
    """
    from sklearn.svm import SVC

    if len(samples) == 0:
        raise EvaluationError(
            "digits judge: there is no sample to judge. Set evaluation.num_samples above 0."
        )
    if labels.shape != (len(samples),):
        raise ShapeError(f"digits judge: {len(samples)} samples but labels of shape {labels.shape}")
    train, test = (images.reshape(len(images), -1) for images in (train_images, test_images))
    rows = to_judge_space(samples).reshape(len(samples), -1)
    judge = SVC(gamma=0.001).fit(train, train_labels)
    is_right = judge.predict(rows) == labels
    diversity = diversity_by_class(rows, labels, train, train_labels)
    if not diversity:
        raise EvaluationError(
            "digits judge: diversity needs two samples of one class, and no class has them."
        )
    return Judgement(
        judge="scikit-learn's SVC(gamma=0.001), fitted on real training digits at 8 x 8",
        class_agreement=float(is_right.mean()),
        class_agreement_real=float((judge.predict(test) == test_labels).mean()),
        agreement_by_class=agreement_by_class(is_right, labels),
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


def _area_weights(size: int) -> NDArray[np.float64]:
    """Return (8, size): the share of each input pixel in each output pixel, rows summing to 1."""
    edges: NDArray[np.float64] = np.linspace(0, size, JUDGE_SIZE + 1, dtype=np.float64)
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return overlap.clip(min=0) * (JUDGE_SIZE / size)
