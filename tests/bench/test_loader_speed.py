"""The loader's speed is reported with the training step that would wait for it."""

from typer.testing import CliRunner

from simflow_plugin.bench.loader_speed import LoaderSpeed, measure_loader
from simflow_plugin.cli.app import app
from simflow_plugin.errors import ConfigError


def test_report_names_the_time_of_a_batch():
    assert "25.0 ms for a batch of 50" in str(LoaderSpeed(2000.0, 50, 0, "digits"))


def test_loader_of_a_configuration_is_measured():
    found = measure_loader("quickstart", ["image_size=8", "training.batch_size=16"], num_batches=2)
    assert found.images_per_second > 0
    assert (found.batch_size, found.data) == (16, "digits")


def test_command_prints_the_loaders_speed_and_refuses_an_unknown_configuration():
    known, unknown = (CliRunner().invoke(app, ["bench", "--loader", name]) for name in ("quickstart", "none"))
    assert known.exit_code == 0, known.output
    assert "images/s (digits" in known.output
    assert unknown.exit_code == ConfigError.exit_status
