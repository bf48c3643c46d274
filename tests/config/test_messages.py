"""Messages: the value that is wrong and the nearest names, not everything there is."""

import pytest

from simflow_plugin.config.loading import load_config
from simflow_plugin.config.yaml_source import find_config
from simflow_plugin.errors import ConfigError


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("quikstart", "quickstart"), ("image-folder", "image-folder-small"), ("repa_e", "repa_e")],
)
def test_wrong_name_of_a_configuration_shows_three_at_most(wrong, right):
    with pytest.raises(ConfigError) as caught:
        find_config(wrong)
    message = str(caught.value)
    assert right in message
    assert message.count("`") <= 6
    assert "simflow config list" in message
    assert len(message) < 300


def test_mistake_between_keys_shows_their_values_only():
    ema = "training.ema={kind: power, lengths: [0.12, 0.12], snapshot_every: 1000}"
    with pytest.raises(ConfigError) as caught:
        load_config("quickstart", [ema])
    message = str(caught.value)
    assert "found lengths: [0.12, 0.12]." in message
    assert "snapshot_every" not in message
