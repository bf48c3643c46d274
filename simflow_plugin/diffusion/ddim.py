"""DDIM: from noise to data in any number of the training schedule's steps.

With abar before and abar' after a step, x0 = (x - sqrt(1 - abar) e) / sqrt(abar):
x' = sqrt(abar') x0 + sqrt(1 - abar' - sigma^2) e + sigma z,
sigma^2 = eta^2 (1 - abar') / (1 - abar) (1 - abar / abar').
The schedule of the betas is diffusers'; its own step takes the next time to be 1000 // n earlier, which is another one
wherever n does not divide 1000.

Reference: arXiv:2010.02502, equations 12 and 16.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from torch import Tensor

from simflow_plugin.diffusion.options import NUM_TRAIN_STEPS
from simflow_plugin.errors import ConfigError
from simflow_plugin.randomness import Random


def ddim_schedule() -> Any:  # diffusers' scheduler mixin hides its attributes from type checkers
    """Return a new schedule: 1000 linear betas."""
    from diffusers import DDIMScheduler  # imported here: it takes seconds, and listing names needs none

    return DDIMScheduler(
        num_train_timesteps=NUM_TRAIN_STEPS, beta_start=1e-4, beta_end=0.02, beta_schedule="linear"
    )


def ddim_times(num_steps: int) -> list[int]:
    """Return the training steps that are visited, evenly spaced, from the very last one down.

    A spacing that starts before it starts where the input is not yet pure noise (arXiv:2305.08891).

    Raises:
        ConfigError: if `num_steps` is not in 1 .. 1000.
    """
    if not 1 <= num_steps <= NUM_TRAIN_STEPS:
        raise ConfigError(f"num_steps is {num_steps}, but DDIM takes 1 to {NUM_TRAIN_STEPS} steps.")
    return [round(NUM_TRAIN_STEPS * left / num_steps) - 1 for left in range(num_steps, 0, -1)]


def ddim(
    predict_noise: Callable[[Tensor, int], Tensor], noise: Tensor, num_steps: int, eta: float, random: Random
) -> Tensor:
    """Return samples shaped like `noise`.

    Args:
        predict_noise: e(x_n (B, ...), n in 0 .. 999) -> (B, ...).
        noise: (B, ...), standard normal.
        num_steps: in 1 .. 1000.
        eta: 0 is deterministic, 1 adds as much noise as DDPM.
        random: noise of the steps, purpose `ddim/<step>`; drawn from only if eta > 0.
    Raises:
        ConfigError: if `num_steps` is out of range.
    """
    alphas_cumprod = ddim_schedule().alphas_cumprod.double()
    times = ddim_times(num_steps)
    levels = [float(alphas_cumprod[time]) for time in times] + [1.0]  # the last step ends at the data
    x = noise
    for index, (time, (level, next_level)) in enumerate(zip(times, pairwise(levels), strict=True)):
        prediction = predict_noise(x, time)
        clean = (x - math.sqrt(1 - level) * prediction) / math.sqrt(level)
        sigma = eta * math.sqrt((1 - next_level) / (1 - level) * (1 - level / next_level))
        x = math.sqrt(next_level) * clean + math.sqrt(max(0.0, 1 - next_level - sigma**2)) * prediction
        if sigma > 0:
            x = x + sigma * random.normal(f"ddim/{index}", x.shape, x.device).to(x.dtype)
    return x
