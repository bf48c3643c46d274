"""Packages that a command imports, counted in a fresh process: seconds depend on the machine, modules do not."""

import importlib
import json
import pkgutil
import subprocess
import sys

import pytest

HEAVY = {
    "accelerate",
    "diffusers",
    "lpips",
    "matplotlib",
    "scipy",
    "sklearn",
    "timm",
    "torchvision",
    "transformers",
}
COUNT = """
import json, sys
sys.argv = ["simflow", *sys.argv[1:]]
from simflow_plugin.cli.app import main
try:
    main()
finally:
    print("\\n" + json.dumps(sorted(sys.modules)))
"""


def modules_after(*arguments):
    done = subprocess.run(
        [sys.executable, "-c", COUNT, *arguments], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("arguments", [("--help",), ("train", "--help"), ("config", "list")])
def test_help_imports_no_numerical_package(arguments):
    modules = modules_after(*arguments)
    assert not modules & {*HEAVY, "torch", "numpy"}
    assert len(modules) < 600


def test_importing_the_package_leaves_torch_out():
    code = "import sys, simflow_plugin, simflow_plugin.registry; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_an_option_of_a_section_is_explained_without_the_parts():
    assert not modules_after("config", "explain", "training.steps") & {*HEAVY, "torch", "numpy"}


@pytest.mark.parametrize("arguments", [("config", "show", "quickstart"), ("fetch", "--list")])
def test_a_configuration_is_checked_without_torch(arguments):
    assert not modules_after(*arguments) & {*HEAVY, "torch", "numpy"}


@pytest.mark.parametrize("package", ["simflow_plugin", "simflow_plugin.flow"])
def test_no_public_name_is_that_of_a_module_which_would_take_its_place(package):
    found = importlib.import_module(package)
    assert not set(found.__all__) & {module.name for module in pkgutil.iter_modules(found.__path__)}
