"""Samplers that carry noise at t = 1 to data at t = 0 along a velocity field: Euler, Heun, Euler-Maruyama.

The ODE dx = v dt and the reverse SDE dx = (v - w_t s / 2) dt + sqrt(w_t) dW, with w_t = 2 t, share their
marginals (SiT, arXiv:2401.08740, section 2). A sampler knows nothing of guidance, labels or networks: the
velocity is a function.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from simflow_plugin.diffusion.interpolants import Interpolant
from simflow_plugin.randomness import Random

Velocity = Callable[[Tensor, float, float], Tensor]
"""v(x_t (B, ...), t in [0, 1], start of the step in [0, 1]) -> (B, ...).

What changes the field by intervals of time (guidance) goes by the start of the step, so that both slopes of a step of
Heun's are of one field."""

SDE_LAST_TIME = 0.04
"""Time at which Euler-Maruyama stops adding noise: the score is singular at t = 0, so the rest is one mean step."""


def integrate(
    method: str, velocity: Velocity, noise: Tensor, num_steps: int, interpolant: Interpolant, random: Random
) -> Tensor:
    """Return samples shaped like `noise`.

    Args:
        method: `euler`, `heun` (second order, two evaluations a step but one in the last) or `euler_maruyama`.
        velocity: the field.
        noise: (B, ...), standard normal, the state at t = 1; its dtype is the state's.
        num_steps: at least 1.
        interpolant: that the field was trained with; only the SDE reads it.
        random: noise of the SDE, purpose `sde/<step>`.
    """
    if method == "euler_maruyama":
        return euler_maruyama(velocity, noise, num_steps, interpolant, random)
    return {"euler": euler, "heun": heun}[method](velocity, noise, num_steps)


def ode_times(num_steps: int) -> list[float]:
    """Return num_steps + 1 times, evenly from 1 to 0."""
    return [1 - step / num_steps for step in range(num_steps + 1)]


def sde_times(num_steps: int) -> list[float]:
    """Return num_steps + 1 times: evenly from 1 to SDE_LAST_TIME, then 0."""
    return [*torch.linspace(1, SDE_LAST_TIME, num_steps, dtype=torch.float64).tolist(), 0.0]


def euler(velocity: Velocity, noise: Tensor, num_steps: int) -> Tensor:
    """Integrate the ODE by first-order steps."""
    x, times = noise, ode_times(num_steps)
    for t, t_next in pairwise(times):
        x = x + (t_next - t) * velocity(x, t, t)
    return x


def heun(velocity: Velocity, noise: Tensor, num_steps: int) -> Tensor:
    """Integrate the ODE by the trapezoidal rule; the last step is Euler's, as in EDM (arXiv:2206.00364)."""
    x, times = noise, ode_times(num_steps)
    for t, t_next in pairwise(times):
        slope = velocity(x, t, t)
        x_next = x + (t_next - t) * slope
        if t_next > 0:
            x_next = x + (t_next - t) * (slope + velocity(x_next, t_next, t)) / 2
        x = x_next
    return x


def euler_maruyama(
    velocity: Velocity, noise: Tensor, num_steps: int, interpolant: Interpolant, random: Random
) -> Tensor:
    """Integrate the reverse SDE; the last step, from SDE_LAST_TIME to 0, adds no noise."""
    x, times = noise, sde_times(num_steps)
    for step, (t, t_next) in enumerate(pairwise(times)):
        v = velocity(x, t, t)
        diffusion = 2 * t
        time = torch.full((x.shape[0],), t, device=x.device, dtype=x.dtype)
        drift = v - 0.5 * diffusion * interpolant.score_from_velocity(v, x, time)
        x = x + (t_next - t) * drift
        if t_next > 0:
            draw = random.normal(f"sde/{step}", x.shape, x.device).to(x.dtype)
            x = x + math.sqrt(diffusion * (t - t_next)) * draw
    return x
