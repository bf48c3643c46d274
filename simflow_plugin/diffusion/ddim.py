"""DDIM: from noise to data in any number of the training schedule's steps (diffusers' schedule and step).

Reference: arXiv:2010.02502, equation 12.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers import DDIMScheduler
from torch import Tensor

from simflow_plugin.errors import ConfigError
from simflow_plugin.randomness import Random

NUM_TRAIN_STEPS = 1000


def ddim_schedule() -> Any:  # diffusers' scheduler mixin hides its attributes from type checkers
    """Return a new schedule: 1000 linear betas, sampling steps that start at the very last training step.

    diffusers' default spacing starts before it, where the input is not yet pure noise (arXiv:2305.08891).
    """
    return DDIMScheduler(
        num_train_timesteps=NUM_TRAIN_STEPS,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        timestep_spacing="trailing",
        clip_sample=False,
    )


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
    if not 1 <= num_steps <= NUM_TRAIN_STEPS:
        raise ConfigError(f"num_steps is {num_steps}, but DDIM takes 1 to {NUM_TRAIN_STEPS} steps.")
    schedule = ddim_schedule()
    schedule.set_timesteps(num_steps)
    x = noise
    for index, step in enumerate(schedule.timesteps.tolist()):
        draw = random.normal(f"ddim/{index}", x.shape, x.device).to(x.dtype) if eta > 0 else None
        x = schedule.step(predict_noise(x, step), step, x, eta=eta, variance_noise=draw).prev_sample
    return x
