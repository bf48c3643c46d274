"""At which times t in [0, 1] a diffusion model trains.

`uniform`: t ~ U[0, 1). `log_normal`: the noise ratio sigma_t / alpha_t is exp(n), n ~ N(0, 1), as REPA-E does
after EDM (arXiv:2206.00364); with the linear interpolant t is then logit-normal.
"""

from __future__ import annotations

import torch
from torch import Tensor

from simflow_plugin.diffusion.interpolants import Interpolant
from simflow_plugin.errors import ConfigError
from simflow_plugin.options import did_you_mean
from simflow_plugin.randomness import Random

TIME_SAMPLINGS = ("uniform", "log_normal")


def sample_times(
    name: str, interpolant: Interpolant, batch_size: int, random: Random, device: torch.device | str
) -> Tensor:
    """Draw times (B,), float32, in [0, 1).

    Args:
        name: `uniform` or `log_normal`.
        interpolant: turns a noise ratio into a time.
        batch_size: B.
        random: drawn from under the purpose `time`.
        device: of the result.
    Raises:
        ConfigError: for another name.
    """
    if name == "uniform":
        return random.uniform("time", (batch_size,), device)
    if name == "log_normal":
        return interpolant.time_of_noise_ratio(random.normal("time", (batch_size,), device).exp())
    raise ConfigError(f"time_sampling: unknown name `{name}`.{did_you_mean(name, TIME_SAMPLINGS)}")
