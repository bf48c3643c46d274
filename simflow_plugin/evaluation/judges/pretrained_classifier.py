"""A judge of samples by a classifier that `simflow pretrain-encoder` trained on real images.

The classifier only judges: no gradient of it reaches the run. With REPA-E to the same classifier's features it
is no longer independent of the samples, which a table must say.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from simflow_plugin import registry
from simflow_plugin.alignment.classifier import ClassifierEncoder
from simflow_plugin.contracts import NO_LABEL, DataContext, ImageDataset
from simflow_plugin.data.labels import shortened
from simflow_plugin.data.loader import evaluation_batches, to_float
from simflow_plugin.data.order import sample_rows
from simflow_plugin.errors import EvaluationError
from simflow_plugin.evaluation.judge_options import EncoderJudgeFacts, EncoderJudgeOptions
from simflow_plugin.evaluation.judges import Judgement, agreement_by_class, diversity_by_class

BATCH_SIZE = 200


@registry.JUDGES.register("encoder")
class EncoderJudge(EncoderJudgeFacts):
    """The classifier in a file.

    Args:
        options: the file, and how many real images the judge itself is measured on.
        context: size of the images.
    Raises:
        WeightsError: if the file is missing, damaged, or something else.
    """

    def __init__(self, options: EncoderJudgeOptions, context: DataContext) -> None:
        self.options = options
        self.network = ClassifierEncoder(ClassifierEncoder.Options(checkpoint=options.checkpoint), context)

    def __call__(self, samples: Tensor, labels: Tensor, train: ImageDataset, test: ImageDataset) -> Judgement:
        card = self.network.card
        if len(samples) == 0 or bool((labels == NO_LABEL).any()):
            raise EvaluationError(
                "evaluation.judge: encoder needs samples of known classes. Set evaluation.num_samples above 0, and "
                "use a labelled data set."
            )
        if test.num_classes != len(card.class_names):
            raise EvaluationError(
                f"{self.options.checkpoint}: knows {len(card.class_names)} classes ({card.data}), but the data set "
                f"has {test.num_classes}. Train a judge on the same data: simflow pretrain-encoder."
            )
        if test.class_names is not None and list(test.class_names) != list(card.class_names):
            raise EvaluationError(
                f"{self.options.checkpoint}: knows the classes {shortened(card.class_names)}, but those of the data "
                f"are {shortened(test.class_names)}. Train a judge on the same data: simflow pretrain-encoder."
            )
        real = list(evaluation_batches(test, BATCH_SIZE, sample_rows(len(test), self.options.num_real)))
        real_images, real_labels = torch.cat([b.images for b in real]), torch.cat([b.labels for b in real])
        images, classes = to_float(samples.permute(0, 3, 1, 2)), labels.numpy()
        is_right = (self._predict(images) == labels).numpy()
        return Judgement(
            judge=f"the classifier {card.data}, {card.test_accuracy:.1%} of {card.num_test} held-out images",
            class_agreement=float(is_right.mean()),
            class_agreement_real=float((self._predict(real_images) == real_labels).double().mean()),
            agreement_by_class=agreement_by_class(is_right, classes),
            diversity_by_class=diversity_by_class(
                _grey_rows(images), classes, _grey_rows(real_images), real_labels.numpy()
            ),
            num_samples=len(samples),
        )

    @torch.no_grad()
    def _predict(self, images: Tensor) -> Tensor:
        """Return the classes (N,) that the judge gives to images (N, 3, H, W) in [-1, 1]."""
        return torch.cat([self.network.logits(part).argmax(1) for part in images.split(BATCH_SIZE)])


def _grey_rows(images: Tensor) -> np.ndarray:
    """Return grey pixels (N, H * W) of images (N, 3, H, W)."""
    return images.mean(1).flatten(1).double().numpy()
