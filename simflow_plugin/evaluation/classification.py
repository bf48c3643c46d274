"""Classification by likelihood: the class under which an image's latents are the most likely.

    y*(x) = argmax_y E_q[log p(z given y)],  z ~ q(z given x)

That is the class of the largest bound on log p(x given y), whose other terms do not depend on y, and Bayes' rule with
equal shares of the classes. It needs an exact density: a diffusion model has only a bound, and one denoising pass a
class and noise level.

What a flow computes before its first block that sees the label is the same for all classes, and is computed once.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from simflow_plugin.contracts import NO_LABEL, GenerativeModel
from simflow_plugin.errors import EvaluationError
from simflow_plugin.evaluation.drawing import SEED
from simflow_plugin.evaluation.held_out import HeldOut, refuse_not_finite
from simflow_plugin.evaluation.intervals import proportion
from simflow_plugin.evaluation.likelihood import latent_log_prob, posterior_draws, write_scores
from simflow_plugin.evaluation.request import has_density
from simflow_plugin.evaluation.result import Measured
from simflow_plugin.progress_bar import count_progress
from simflow_plugin.randomness import IndexedRandom, Random
from simflow_plugin.runs.loaded_run import LoadedRun


class Classified(NamedTuple):
    """Of N images with labels: `indices`, `labels` and `predicted`, (N,) int64; `log_probs` (N, K), nats, float64."""

    indices: Tensor
    labels: Tensor
    predicted: Tensor
    log_probs: Tensor


def class_log_probs(
    model: GenerativeModel, latents: Tensor, num_classes: int, rows_at_once: int | None = None
) -> Tensor:
    """Return log p(latents given y) for every class y, (B, K), float64, nats, on the CPU.

    Args:
        model: with an exact density.
        latents: (B, C, h, w), as the model learns them.
        num_classes: K.
        rows_at_once: most rows of one pass, for memory; None is all B * K.
    Raises:
        EvaluationError: if the model has no exact density.
    """
    flow = model.token_flow()
    if flow is not None and flow.config.num_classes == num_classes:
        tokens: Tensor = model.tokens(latents)  # type: ignore[operator]  # every model with a flow of tokens has it
        return flow.log_prob_by_class(tokens, rows_at_once).double().cpu()
    found = []
    for rows in torch.arange(len(latents) * num_classes).split(rows_at_once or len(latents) * num_classes):
        images, labels = rows // num_classes, rows % num_classes
        found.append(latent_log_prob(model, latents[images.to(latents.device)], labels.to(latents.device)))
    return torch.cat(found).view(len(latents), num_classes)


@torch.no_grad()
def mean_class_log_probs(
    loaded: LoadedRun, images: Tensor, random: Random, num_draws: int, rows_at_once: int | None = None
) -> Tensor:
    """Return E_q[log p(z given y)] for every class y, (B, K), float64, nats, on the CPU.

    Args:
        loaded: the run; see `check_classifies`.
        images: (B, 3, H, W), [-1, 1], on its device.
        random: source of the posterior draws, those of the likelihood.
        rows_at_once: most rows of one pass, for memory.
    """
    model = loaded.require_model()
    with loaded.precision.active():
        posterior = loaded.autoencoder.encode(images)
        draws = [
            class_log_probs(model, latents, loaded.num_classes or 0, rows_at_once)
            for latents, _ in posterior_draws(model, posterior, random, num_draws, "likelihood")
        ]
    return torch.stack(draws).mean(0)


def check_classifies(loaded: LoadedRun) -> None:
    """Refuse a run that knows no classes or has no exact density.

    Raises:
        EvaluationError: naming the option.
    """
    model = loaded.model
    if model is None or not has_density(loaded):
        raise EvaluationError(
            f"{loaded.directory.path}: classification by likelihood (--classify) needs a model with an exact "
            "density, as flows have."
        )
    flow = model.token_flow()
    if loaded.num_classes is None or (flow is not None and flow.config.num_classes is None):
        raise EvaluationError(
            f"{loaded.directory.path}: classification by likelihood (--classify) needs a model of several classes; "
            "this one was trained without labels."
        )


@torch.no_grad()
def classify(loaded: LoadedRun, held_out: HeldOut, num_draws: int, rows_at_once: int) -> Classified:
    """Classify held-out images by likelihood.

    Args:
        held_out: images; those without a label are left out.
        num_draws: posterior draws an image, over which log p(z given y) is averaged.
        rows_at_once: most rows of one pass of the flow.
    Raises:
        EvaluationError: if no image has a label, or a likelihood is not finite.
    """
    check_classifies(loaded)
    parts = []
    with count_progress("classification", held_out.count) as advance:
        for batch in held_out.batches():
            random = IndexedRandom(SEED, tuple(batch.indices.tolist()))
            images = batch.images.to(loaded.device)
            log_probs = mean_class_log_probs(loaded, images, random, num_draws, rows_at_once)
            parts.append((batch.indices, batch.labels.cpu(), log_probs))
            advance(len(batch.images))
    indices, labels, log_probs = (torch.cat(part) for part in zip(*parts, strict=True))
    refuse_not_finite(log_probs, indices, held_out.name)
    known = labels != NO_LABEL
    if not bool(known.any()):
        raise EvaluationError(f"{held_out.name}: --classify: none of its images has a label.")
    return Classified(indices[known], labels[known], log_probs[known].argmax(1), log_probs[known])


def measure_classification(found: Classified, on: str, csv: Path) -> dict[str, Measured]:
    """Return the accuracy with its interval; write one row an image to `csv`: label, prediction, log-likelihoods."""
    num_classes = found.log_probs.shape[1]
    columns = {f"log_prob_{y}": found.log_probs[:, y] for y in range(num_classes)}
    fixed = {"index": found.indices, "label": found.labels, "predicted": found.predicted}
    write_scores(csv, {**fixed, **columns})
    num_right = int((found.predicted == found.labels).sum())
    accuracy = proportion(num_right, len(found.labels), "images")
    on = f"{on}; of {num_classes} classes, chance {1 / num_classes:.1%}"
    return {"classification_accuracy": accuracy.with_notes(on)}
