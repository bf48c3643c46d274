"""The judge that a configuration names: whether samples are of the class that was asked for, and as varied as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from simflow_plugin.alignment.classifier import load_classifier
from simflow_plugin.config.checks import JUDGED_DIGITS
from simflow_plugin.config.schema import RunConfig
from simflow_plugin.contracts import ImageDataset
from simflow_plugin.errors import EvaluationError
from simflow_plugin.evaluation.digits_judge import judge_digits
from simflow_plugin.evaluation.encoder_judge import judge_with_encoder
from simflow_plugin.evaluation.judgement import Judgement
from simflow_plugin.runs.parts import build_dataset


def check_judge(config: RunConfig, num_samples: int) -> None:
    """Refuse now what `judge_samples` would refuse when all samples are drawn.

    Raises:
        EvaluationError: for too few samples.
        WeightsError: if the judge's file is missing or damaged.
    """
    judge = config.evaluation.judge
    if judge == "encoder":
        load_classifier(Path(str(config.evaluation.judge_checkpoint)))
    if judge == "digits" and num_samples < 2 * JUDGED_DIGITS:
        raise EvaluationError(
            f"--num-samples {num_samples}: evaluation.judge: digits needs two samples of each of {JUDGED_DIGITS} "
            f"classes: {2 * JUDGED_DIGITS}."
        )


def judge_samples(config: RunConfig, test: ImageDataset, samples: Tensor, labels: Tensor) -> Judgement:
    """Judge samples by `evaluation.judge`.

    Args:
        config: of the run; its judge is not `none`.
        test: its held-out images.
        samples: uint8 (N, H, W, 3).
        labels: (N,) int64, the classes that were asked for.
    Raises:
        EvaluationError: if the judge does not know this data set.
    """
    if config.evaluation.judge == "encoder":
        return judge_with_encoder(str(config.evaluation.judge_checkpoint), samples, labels, test)
    train: Any = build_dataset(config, "train")
    held_out: Any = test
    if not hasattr(train, "raw_images"):
        raise EvaluationError(
            f"evaluation.judge: digits judges the data set `digits` only, not `{config.data.name}`."
        )
    return judge_digits(
        np.ascontiguousarray(samples.permute(0, 3, 1, 2).numpy()),
        labels.numpy(),
        train.raw_images,
        train.labels.numpy(),
        held_out.raw_images,
        held_out.labels.numpy(),
    )
