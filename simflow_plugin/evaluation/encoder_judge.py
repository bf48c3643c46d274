"""A judge of samples by a classifier that `simflow pretrain-encoder` trained on real images.

The classifier only judges: no gradient of it reaches the run. With REPA-E to the same classifier's features it
is no longer a stranger to the samples, which a table must say.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from simflow_plugin.alignment.classifier import ClassifierEncoder
from simflow_plugin.contracts import NO_LABEL, DataContext, ImageDataset
from simflow_plugin.data.loader import evaluation_batches, to_float
from simflow_plugin.data.order import sample_rows
from simflow_plugin.errors import EvaluationError
from simflow_plugin.evaluation.digits_judge import diversity_by_class
from simflow_plugin.evaluation.judgement import Judgement

BATCH_SIZE = 200


def judge_with_encoder(
    checkpoint: str, samples: Tensor, labels: Tensor, test: ImageDataset, num_real: int = 2000
) -> Judgement:
    """Judge samples by the classifier in `checkpoint`.

    Args:
        checkpoint: file made by `simflow pretrain-encoder`.
        samples: uint8 (N, H, W, 3).
        labels: (N,) int64, the classes that were asked for.
        test: real held-out images, for the judge's own accuracy and the diversity of real images.
        num_real: how many of them, drawn at random.
    Raises:
        EvaluationError: without samples or labels, or if the classifier knows other classes than the data set.
        WeightsError: if the file is missing, damaged, or something else.
    """
    if len(samples) == 0 or bool((labels == NO_LABEL).any()):
        raise EvaluationError(
            "evaluation.judge: encoder needs samples of known classes. Set evaluation.num_samples above 0, and use a "
            "labelled data set."
        )
    size = samples.shape[1]
    judge = ClassifierEncoder(ClassifierEncoder.Options(checkpoint=checkpoint), DataContext(size, "test"))
    if test.num_classes != len(judge.card.class_names):
        raise EvaluationError(
            f"{checkpoint}: knows {len(judge.card.class_names)} classes ({judge.card.data}), but the data set has "
            f"{test.num_classes}. Train a judge on the same data: simflow pretrain-encoder."
        )
    rows = sample_rows(len(test), num_real)
    real = list(evaluation_batches(test, BATCH_SIZE, rows))
    real_images, real_labels = torch.cat([b.images for b in real]), torch.cat([b.labels for b in real])
    images = to_float(samples.permute(0, 3, 1, 2))
    is_right = _predict(judge, images) == labels
    diversity = diversity_by_class(_pixels(images), labels.numpy(), _pixels(real_images), real_labels.numpy())
    return Judgement(
        judge=f"the classifier {judge.card.data}, {judge.card.test_accuracy:.1%} of {judge.card.num_test} "
        "held-out images",
        class_agreement=float(is_right.double().mean()),
        class_agreement_real=float((_predict(judge, real_images) == real_labels).double().mean()),
        diversity_ratio=float(np.mean(list(diversity.values()))) if diversity else float("nan"),
        agreement_by_class={
            int(label): float(is_right[labels == label].double().mean()) for label in labels.unique()
        },
        diversity_by_class=diversity,
        num_samples=len(samples),
    )


@torch.no_grad()
def _predict(judge: ClassifierEncoder, images: Tensor) -> Tensor:
    """Return the classes (N,) that the judge gives to images (N, 3, H, W) in [-1, 1]."""
    return torch.cat([judge.logits(part).argmax(1) for part in images.split(BATCH_SIZE)])


def _pixels(images: Tensor) -> np.ndarray:
    """Return grey pixels (N, H * W) of images (N, 3, H, W)."""
    return images.mean(1).flatten(1).double().numpy()
