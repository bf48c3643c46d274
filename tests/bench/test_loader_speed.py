"""The loader's speed is reported with the training step that would wait for it."""

from typer.testing import CliRunner

from simflow_plugin.bench.loader_speed import LoaderSpeed, measure_loader
from simflow_plugin.cli.app import app


def test_report_names_the_time_of_a_batch():
    assert "25.0 ms for a batch of 50" in str(LoaderSpeed(2000.0, 50, 0, "digits"))


def test_loader_of_a_configuration_is_measured():
    found = measure_loader("quickstart", ["image_size=8", "training.batch_size=16"], num_batches=2)
    assert found.images_per_second > 0
    assert (found.batch_size, found.data) == (16, "digits")


def test_bench_prints_the_loaders_speed():
    result = CliRunner().invoke(app, ["bench", "--loader", "quickstart"])
    assert result.exit_code == 0, result.output
    assert "images/s (digits" in result.output


def test_unknown_configuration_is_refused():
    result = CliRunner().invoke(app, ["bench", "--loader", "no-such-configuration"])
    assert result.exit_code != 0
    assert "no-such-configuration" in result.output
