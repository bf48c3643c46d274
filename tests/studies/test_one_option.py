"""Studies of one option differ in that option and in nothing else."""

import pytest

from simflow_plugin.config.loading import load_config
from simflow_plugin.studies.definitions import LATENT_WIDTH, SIGMA


def without(values, path):
    """Take a value out of a nested mapping, and return it."""
    *parents, last = path
    for name in parents:
        values = values[name]
    return values.pop(last)


@pytest.mark.parametrize(
    ("study", "path", "expected"),
    [
        (SIGMA, ("autoencoder", "posterior", "std"), [0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0]),
        (LATENT_WIDTH, ("autoencoder", "latent_channels"), [2, 4, 8, 16, 32]),
    ],
    ids=["sigma", "latent_width"],
)
def test_variants_differ_in_the_option_that_is_studied(study, path, expected):
    configs = [load_config(study.config_name(v.name), []).model_dump(mode="json") for v in study.variants]
    assert [without(config, path) for config in configs] == expected
    for config in configs:
        config.pop("name")
    assert all(config == configs[0] for config in configs)
    assert configs[0]["autoencoder"]["trainable"] == "full"
