"""What is said of the package in several files is the same in all of them."""

import re
from pathlib import Path

import pytest
import yaml

import simflow_plugin

CHECKOUT = Path(__file__).parents[1]


def text_of(name):
    path = CHECKOUT / name
    if not path.is_file():
        pytest.skip(f"{name} is in a checkout only")
    return path.read_text(encoding="utf-8")


def test_versions_agree():
    stated = re.search(r'^version = "(.+)"$', text_of("pyproject.toml"), re.MULTILINE)
    assert stated is not None
    assert stated[1] == simflow_plugin.__version__ == yaml.safe_load(text_of("CITATION.cff"))["version"]


def test_the_workflow_tests_every_python_that_is_declared():
    declared = set(re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text_of("pyproject.toml")))
    matrix = yaml.safe_load(text_of(".github/workflows/tests.yml"))["jobs"]["test"]["strategy"]["matrix"]
    assert set(matrix["python"]) == declared
    oldest = min(declared, key=lambda version: int(version.split(".")[1]))
    assert {"python": oldest, "resolution": "lowest-direct"} in matrix["include"]


def test_every_dependency_has_a_lower_bound():
    (section,) = re.findall(
        r"^dependencies = \[\n(.*?)^\]", text_of("pyproject.toml"), re.MULTILINE | re.DOTALL
    )
    unbounded = [name for name in re.findall(r'"(.+?)"', section) if ">=" not in name]
    assert not unbounded
