"""The loader's speed is reported with the training step that would wait for it."""

from simflow_plugin.bench.loader_speed import LoaderSpeed, measure_loader
from simflow_plugin.errors import ConfigError
from tests.commands import simflow, succeed


def test_report_names_the_time_of_a_batch():
    assert "25.0 ms for a batch of 50" in str(LoaderSpeed(2000.0, 50, 0, "digits"))


def test_loader_of_a_configuration_is_measured():
    found = measure_loader("quickstart", ["image_size=8", "training.batch_size=16"], num_batches=2)
    assert found.images_per_second > 0
    assert (found.batch_size, found.data) == (16, "digits")


def test_command_prints_the_loaders_speed_and_refuses_an_unknown_configuration():
    assert "images/s (digits" in succeed("bench", "--loader", "quickstart")
    assert simflow("bench", "--loader", "none")[0] == ConfigError.exit_status
