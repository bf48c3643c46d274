"""A data set on the command line: folder, name or mapping."""

import pytest

from simflow_plugin.config.loading import resolve_data
from simflow_plugin.errors import ConfigError


def test_a_mapping_longer_than_the_name_of_a_file_may_be_is_a_mapping():
    root = "/" + "images" * 50
    assert resolve_data(f"{{name: image_folder, root: {root}}}", "DATA").options["root"] == root


def test_a_folder_is_a_folder_of_images(tmp_path):
    part = resolve_data(str(tmp_path), "DATA")
    assert (part.name, part.options["root"]) == ("image_folder", str(tmp_path))


@pytest.mark.parametrize(("prefers_names", "expected"), [(True, "digits"), (False, "image_folder")])
def test_a_name_wins_over_a_folder_of_that_name_where_it_is_preferred(
    tmp_path, monkeypatch, prefers_names, expected
):
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_data("digits", "DATA", prefers_names=prefers_names).name == expected


def test_a_name_that_is_neither_folder_nor_data_set_is_refused():
    with pytest.raises(ConfigError, match="unknown name `nothing`"):
        resolve_data("nothing", "DATA")
