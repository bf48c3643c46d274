"""Registries: built-in parts by name, third-party parts by entry point, errors that name who is at fault."""

import sys

import pytest

from simflow_plugin.errors import RegistryError
from simflow_plugin.registry import (
    ATTENTION,
    AUTOENCODERS,
    DATASETS,
    ENCODERS,
    GUIDANCE,
    MODELS,
    RECONSTRUCTION_LOSSES,
    Registry,
)
from tests.third_party import MODEL_SOURCE

ALL = [MODELS, AUTOENCODERS, ENCODERS, DATASETS, RECONSTRUCTION_LOSSES, GUIDANCE, ATTENTION]


@pytest.mark.parametrize("registry", ALL, ids=lambda r: r.kind)
def test_every_builtin_part_loads_and_has_strict_options(registry):
    assert registry.names()
    for name in registry.names():
        part = registry.get(name)
        assert callable(part)
        assert registry is ATTENTION or part.Options.model_config["extra"] == "forbid"


def test_unknown_name_lists_choices_and_nearest_match():
    with pytest.raises(
        RegistryError, match=r"unknown name `simflo`\. Did you mean `simflow`\? Known: .*simflow"
    ):
        MODELS.get("simflo")


def test_third_party_model_is_found_by_name_and_imported_when_asked_for(install):
    install("tiny-models", "tiny_models_a", MODEL_SOURCE, "gaussian", "Gaussian")
    assert "gaussian" in MODELS.names()
    assert "tiny_models_a" not in sys.modules
    assert MODELS.get("gaussian").__module__ == "tiny_models_a"


def test_name_of_two_distributions_names_both(install):
    install("one-models", "one_models", MODEL_SOURCE, "twin", "Gaussian")
    install("two-models", "two_models", MODEL_SOURCE, "twin", "Gaussian")
    with pytest.raises(RegistryError, match="one-models") as error:
        MODELS.get("twin")
    assert "two-models" in str(error.value)


def test_third_party_name_of_a_builtin_part_names_both(install):
    install("rival-models", "rival_models", MODEL_SOURCE, "simflow", "Gaussian")
    with pytest.raises(RegistryError, match=r"simflow-plugin, rival-models"):
        MODELS.get("simflow")


@pytest.mark.parametrize("options", ["", "    Options = dict\n", "    class Options:\n        width = 3\n"])
def test_part_without_options_names_its_distribution_and_what_to_add(install, options):
    source = f"class Bare:\n{options}    pass\n"
    install("bare-models", f"bare_models_{len(options)}", source, "bare", "Bare")
    with pytest.raises(
        RegistryError,
        match=r"`bare` of distribution bare-models \(bare_models_.*Bare\): .*Add `class Options\(",
    ):
        MODELS.get("bare")


def test_builtin_part_that_does_not_import_fails_the_same_way_again(tmp_path, monkeypatch):
    package = tmp_path / "broken_parts"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from simflow_plugin.registry import Registry\nPARTS = Registry('parts', 'broken_parts.first')\n"
    )
    (package / "first.py").write_text(
        "from broken_parts import PARTS\nfrom simflow_plugin.options import Options\n"
        "@PARTS.register('first')\nclass First:\n    Options = Options\n"
        "import a_package_that_is_not_there\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import broken_parts

    assert isinstance(broken_parts.PARTS, Registry)
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
            broken_parts.PARTS.get("first")
