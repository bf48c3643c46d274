"""Times to train at: range, distribution, names."""

import math

import pytest
import torch

from simflow_plugin.diffusion.interpolants import INTERPOLANTS, Interpolant
from simflow_plugin.diffusion.time_sampling import TIME_SAMPLINGS, sample_times
from simflow_plugin.errors import ConfigError
from simflow_plugin.randomness import BatchRandom

COUNT = 4000
RANDOM = BatchRandom(seed=1, step=0, offset=0, global_batch_size=COUNT)


@pytest.mark.parametrize("interpolant", INTERPOLANTS)
@pytest.mark.parametrize("name", TIME_SAMPLINGS)
def test_times_lie_between_data_and_noise(name: str, interpolant: str) -> None:
    t = sample_times(name, Interpolant(interpolant), COUNT, RANDOM, "cpu")
    assert t.shape == (COUNT,)
    assert t.min() >= 0
    assert t.max() < 1


def test_uniform_times_have_uniform_mean_and_variance() -> None:
    t = sample_times("uniform", Interpolant("linear"), COUNT, RANDOM, "cpu")
    assert abs(t.mean() - 0.5) < 0.02
    assert abs(t.var() - 1 / 12) < 0.005


@pytest.mark.parametrize("interpolant", INTERPOLANTS)
def test_log_normal_times_have_standard_normal_log_noise_ratio(interpolant: str) -> None:
    t = sample_times("log_normal", Interpolant(interpolant), COUNT, RANDOM, "cpu").double()
    c = Interpolant(interpolant).at(t)
    log_ratio = (c.sigma / c.alpha).log()
    assert abs(log_ratio.mean()) < 4 / math.sqrt(COUNT)
    assert abs(log_ratio.std() - 1) < 4 / math.sqrt(COUNT)


def test_unknown_name_lists_choices() -> None:
    with pytest.raises(ConfigError, match="Did you mean `log_normal`"):
        sample_times("lognormal", Interpolant("linear"), 1, RANDOM, torch.device("cpu"))
