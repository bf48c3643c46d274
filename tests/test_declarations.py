"""Parts are declared without their networks, with the facts that they have."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

from simflow_plugin import registry

HEAVY = (
    "torch",
    "torch._dynamo",
    "diffusers",
    "timm",
    "transformers",
    "accelerate",
    "numpy",
    "scipy",
    "matplotlib",
)
REGISTRIES = [value for value in vars(registry).values() if isinstance(value, registry.Registry)]
DECLARING = [one for one in REGISTRIES if one.kind != "attention"]


def heavy_modules_after(code: str) -> list[str]:
    """Return which of `HEAVY` a fresh interpreter has imported after `code`."""
    tail = f"\nimport sys; print('heavy:', *[name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, check=True)
    return result.stdout.splitlines()[-1].removeprefix("heavy:").split()


def test_every_shipped_configuration_is_validated_without_torch():
    code = """
from simflow_plugin.config.loading import load_config
from simflow_plugin.config.yaml_source import shipped_configs
names = shipped_configs()
assert len(names) > 5, names
for name in names:
    load_config(name)
load_config("quickstart", ["sampling={guidance: 1, autoguidance: '@2'}"])
"""
    assert heavy_modules_after(code) == []


@pytest.mark.parametrize("name", registry.MODELS.builtin_facts())
def test_fact_on_autoguidance_is_what_the_model_does(name):
    from simflow_plugin.contracts import GuidedByWeaker

    facts, model = registry.MODELS.facts(name), registry.MODELS.get(name)
    assert facts.supports_autoguidance == issubclass(model, GuidedByWeaker)


@pytest.mark.parametrize("one", DECLARING, ids=lambda one: one.kind)
def test_every_built_in_part_is_declared_with_the_facts_that_it_has(one):
    one.names()
    for package in {module.rpartition(".")[0] for module, _ in one._declared.values()}:
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            importlib.import_module(f"{package}.{module.name}")
    ours = {name for name, part in one._builtin.items() if part.__module__.startswith("simflow_plugin.")}
    assert ours == set(one._declared)  # a test may have registered parts of its own
    for name in one._declared:
        facts, part = one.facts(name), one.get(name)
        for fact in (key for key in dir(facts) if not key.startswith("_")):
            here, there = getattr(facts, fact), getattr(part, fact)
            assert getattr(here, "__func__", here) == getattr(there, "__func__", there), (name, fact)


def test_declared_number_of_classes_is_what_the_data_have():
    from simflow_plugin.contracts import DataContext
    from simflow_plugin.data.fashion_mnist import CLASS_NAMES

    digits = registry.DATASETS.get("digits")
    found = registry.DATASETS.build("digits", digits.Options(), DataContext(8, "train"))
    assert registry.DATASETS.facts("digits").known_num_classes == found.num_classes
    assert registry.DATASETS.facts("fashion-mnist").known_num_classes == len(CLASS_NAMES)
