"""Paths in configurations: absolute once read, except what is no path."""

from pathlib import Path

import pytest
import yaml

from simflow_plugin.config.loading import config_from_source
from simflow_plugin.config.yaml_source import YamlSource
from simflow_plugin.local_paths import absolute, absolute_if_there, absolute_shards, missing_paths
from tests.training.tiny_runs import tiny_values


def test_relative_root_is_stored_as_absolute_and_stays_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = {**tiny_values(), "data": {"name": "image_folder", "root": "images"}}
    config = config_from_source(YamlSource(values, {}, "test"))
    assert config.data.options["root"] == str(tmp_path / "images")
    monkeypatch.chdir("/")
    again = config_from_source(YamlSource(yaml.safe_load(config.to_yaml()), {}, "test"))
    assert again == config


def test_home_folder_is_written_out(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert absolute("~/images") == str(tmp_path / "images")


@pytest.mark.parametrize("name", ["owner/name-on-a-hub", "x" * 5000])
def test_name_that_is_no_path_stays(name):
    assert absolute_if_there(name) == name


def test_name_of_a_folder_that_is_there_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("vae").mkdir()
    assert absolute_if_there("vae") == str(tmp_path / "vae")


def test_addresses_and_commands_are_no_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shards = ["a-{00..03}.tar", "https://host/b.tar", "pipe:cat c.tar"]
    assert absolute_shards(shards) == [str(tmp_path / "a-{00..03}.tar"), *shards[1:]]


def test_paths_that_lead_nowhere_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a-1.tar").touch()
    images, absent = str(tmp_path / "images"), str(tmp_path / "b-*.tar")
    config = {
        "data": {"root": images},
        "vae": "none.safetensors",
        "shards": [str(tmp_path / "a-*.tar"), absent, str(tmp_path / "a-1.tar"), "/x/{0..3}.tar", "b/c"],
    }
    expected = [("data.root", images), ("vae", "none.safetensors"), ("shards", absent)]
    assert list(missing_paths(config)) == expected
