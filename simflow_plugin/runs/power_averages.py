"""Averages of the weights by a power function of the step, and any length made afterwards from stored ones.

After t steps the profile of exponent g is p(s) = (g + 1) s^g / t^(g+1) on [0, t]; its standard deviation over t, the
relative length, is sqrt((g + 1) / ((g + 2)^2 (g + 3))). The recurrence with decay (1 - 1/t)^(g+1) gives step k exactly
the weight that p has on [k - 1, k]. Another profile is a combination of stored ones that is nearest to it in least
squares; with

    <p_a, p_b> = (g_a + 1)(g_b + 1) / (g_a + g_b + 1) * min(t_a, t_b)^(g_a+g_b+1) / (t_a^(g_a+1) t_b^(g_b+1))

that is a small linear system, here with the weights bound to add up to one, so that what does not move stays as it is.
Reference: EDM2, arXiv:2312.02696, section 3.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simflow_plugin.config.average_options import LONGEST, Average, PowerAverage
from simflow_plugin.errors import EvaluationError
from simflow_plugin.runs.checkpoints import Checkpoint, checkpoint_folders, read_checkpoint, verify_checkpoint
from simflow_plugin.runs.run_directory import RunDirectory

log = logging.getLogger(__name__)

LARGE_ERROR = 0.05
"""Relative error of a reconstructed profile that deserves a warning."""
SINGULAR = 1e-12
"""Directions of the linear system below this share of the largest are left out: snapshots that are alike."""


@dataclass(frozen=True)
class Profile:
    """A power function of the step: its exponent g > 0, after t steps."""

    exponent: float
    step: int


def exponent_of_length(length: float) -> float:
    """Return the exponent of a relative length in (0, 12^-1/2), the root of g^3 + 7 g^2 + (16 - c) g + 12 - c.

    c is length^-2; there is one root above 0.
    """
    inverse = length**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(roots.real.max())


def power_decay(exponent: float, step: int) -> float:
    """Return the decay of the recurrence at optimizer step `step`, from 0; the first step replaces the average."""
    return (1 - 1 / (step + 1)) ** (exponent + 1)


def inner_products(rows: Sequence[Profile], columns: Sequence[Profile]) -> NDArray[np.float64]:
    """Return <p_a, p_b> for every a of `rows` and b of `columns`."""
    a, b = (
        np.array([[p.exponent for p in ps], [p.step for p in ps]], dtype=np.float64) for ps in (rows, columns)
    )
    (exponent_a, step_a), (exponent_b, step_b) = a[:, :, None], b[:, None, :]
    both = exponent_a + exponent_b + 1
    # Logarithms: t^g of a short average and a long run is beyond float64.
    powers = both * np.log(np.minimum(step_a, step_b))
    powers = powers - (exponent_a + 1) * np.log(step_a) - (exponent_b + 1) * np.log(step_b)
    return np.asarray((exponent_a + 1) * (exponent_b + 1) / both * np.exp(powers))


def reconstruction_weights(stored: Sequence[Profile], target: Profile) -> tuple[NDArray[np.float64], float]:
    """Return the weights of stored averages, adding up to one, that come nearest to `target`.

    Returns:
        Weights (len(stored),), and the relative error of the profile, |p - p_target| / |p_target|.
    """
    unit = target.step  # inner products are per step: make them numbers around one
    gram = unit * inner_products(stored, stored)
    aim = unit * inner_products(stored, [target])[:, 0]
    own = unit * inner_products([target], [target])[0, 0]
    ones = np.ones(len(stored))
    system = np.block([[gram, ones[:, None]], [ones[None], np.zeros((1, 1))]])
    solution, *_ = np.linalg.lstsq(system, np.append(aim, 1.0), rcond=SINGULAR)
    weights = solution[:-1]
    squared = weights @ gram @ weights - 2 * weights @ aim + own
    return weights, float(np.sqrt(max(squared, 0.0) / own))


def average_files(options: PowerAverage) -> dict[str, float]:
    """Return the relative length by the name of the file that holds it, in checkpoints and snapshots."""
    return {"ema" if i == 0 else f"ema_{i}": length for i, length in enumerate(options.lengths)}


def average_of_length(
    run: RunDirectory, options: Average, checkpoint: Checkpoint, length: float
) -> dict[str, Tensor]:
    """Return the averaged tensors of `checkpoint` for a relative length, from it and the snapshots before it.

    Raises:
        EvaluationError: if the run keeps no power-function averages, or `length` is none.
    """
    if not isinstance(options, PowerAverage):
        raise EvaluationError(
            f"{run.path}: keeps one exponential average, whose length cannot be chosen. Train with "
            "training.ema: {kind: power}, or leave --ema-length out."
        )
    if not 0 < length < LONGEST:
        raise EvaluationError(f"--ema-length {length}: expected a number between 0 and {LONGEST:.4f}.")
    files = average_files(options)
    for name, kept in files.items():
        if abs(kept - length) < 1e-9:
            return checkpoint.tensors(name)
    sources = [
        (Profile(exponent_of_length(kept), held.step), held, name)
        for held in [*_snapshots_before(run, checkpoint.step), checkpoint]
        for name, kept in files.items()
    ]
    target = Profile(exponent_of_length(length), checkpoint.step)
    weights, error = reconstruction_weights([profile for profile, _, _ in sources], target)
    if error > LARGE_ERROR:
        log.warning(
            "%s: an average of length %g is made of the %d stored with an error of %.0f %% of its profile. Choose a "
            "length nearer to %s, or train with a smaller training.ema.snapshot_every.",
            run.path,
            length,
            len(sources),
            100 * error,
            ", ".join(f"{kept:g}" for kept in files.values()),
        )
    total: dict[str, Tensor] = {}
    for weight, (_, held, name) in zip(weights.tolist(), sources, strict=True):
        for key, tensor in held.tensors(name).items():
            total[key] = total.get(key, 0) + weight * tensor.to(torch.float64)
    return {key: tensor.to(torch.float32) for key, tensor in total.items()}


def _snapshots_before(run: RunDirectory, step: int) -> list[Checkpoint]:
    """Return the intact snapshots of fewer than `step` steps; torn ones are named and passed over."""
    found = []
    for path in checkpoint_folders(run.averages):
        if int(path.name.removeprefix("step_")) >= step:
            continue
        problem = verify_checkpoint(path)
        if problem is None:
            found.append(read_checkpoint(path))
        else:
            log.warning("%s: %s. The average is made without it.", path, problem)
    return found
