"""`simflow config explain`: options by key, of sections and of parts, and the nearest keys to a wrong one."""

import pytest
import yaml

from simflow_plugin.config.explanation import explain, nearest
from simflow_plugin.config.loading import load_config
from simflow_plugin.config.option_facts import REQUIRED, as_yaml
from simflow_plugin.config.reference import all_options, section_summaries
from simflow_plugin.config.yaml_source import shipped_configs
from simflow_plugin.errors import ConfigError
from tests.third_party import MODEL_SOURCE


@pytest.fixture(scope="module")
def builtin():
    return list(all_options(third_party=False))


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("training.steps", ["integer", "> 0, <= 10000000000", REQUIRED, "optimizer steps"]),
        ("training.ema.decay", ["number", ">= 0, < 1", "0.9999", "training.ema: exponential"]),
        ("training.ema.kind", ["exponential", "power"]),
        ("training.ema.lengths", ["list of numbers", "training.ema: power"]),
        ("model.flow.width", ["> 0", "768", "model: simflow, starflow"]),
        ("model.flow.size", ["simflow-xxl", "default   null"]),
        ("model.flow.attention", ["sdpa", "xformers"]),
        ("model.sampling.method", ["naive", "jacobi", "default   cached"]),
        ("model.sampling.method.tolerance", ["1.0e-05", "model.sampling.method: jacobi"]),
        (
            "objective.reconstruction.timm.backbone",
            ["objective.reconstruction.timm.options.backbone", "null"],
        ),
        ("objective.reconstruction.timm.options.backbone", ["timm's name of the backbone"]),
        ("objective.adversarial.betas", ["list of 2 numbers >= 0, < 1", "[0.5, 0.9]"]),
        ("autoencoder.posterior.std", ["0.5", "autoencoder.posterior: fixed"]),
        ("alignment.encoder", ["dinov2-b", "`vit_base_patch14_dinov2.lvd142m`", REQUIRED]),
        ("sampling.autoguidance", ["RUN[@step], or mapping, or null"]),
        ("training.init_from", ["RUN, or mapping, or null"]),
        ("tracker.name", ["wandb", "tensorboard"]),
        ("optimizer", ["optimizer.lr", "optimizer.betas"]),
        ("model.simflow", ["model: simflow", "model.flow"]),
        ("training.ema.power", ["training.ema.snapshot_every"]),
        ("autoencoder.posterior.learnable", ["no options"]),
        ("model.name", ["learned_inverse", "model.flow"]),
    ],
)
def test_option_section_or_part_is_explained(key, expected):
    text = explain(key)
    assert [words for words in expected if words not in text] == []


def test_option_of_several_parts_is_explained_for_each():
    text = explain("data.root")
    assert text.count("data.root\n") == 3
    assert "data: fashion-mnist" in text
    assert "data: image_folder" in text


def test_part_named_in_the_key_narrows_it():
    assert "model: sit" in explain("model.sampling.method")
    assert explain("model.sit.sampling.method").count("model.sampling.method\n") == 1


def test_without_a_key_every_section_is_listed():
    lines = explain().splitlines()
    listed = [line.split()[0] for line in lines[2:] if line.startswith("  ") and line[2] != " "]
    assert listed == list(section_summaries())


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("training.emma.decay", "training.ema.decay"),
        ("training.ema_decay", "training.ema.decay"),
        ("model.flow.widht", "model.flow.width"),
        ("model.width", "model.flow.width"),
        ("lr", "optimizer.lr"),
        ("optimiser.lr", "optimizer.lr"),
        ("Training.Steps", "training.steps"),
        ("objective.reconstruction.timm.backbon", "objective.reconstruction.timm.options.backbone"),
        ("training.steps.", "training.steps"),
        ("", "seed"),
    ],
)
def test_wrong_key_names_the_nearest_three(wrong, meant):
    with pytest.raises(ConfigError) as caught:
        explain(wrong)
    near = str(caught.value).partition("Nearest: ")[2].partition(". `simflow")[0].split(", ")
    assert len(set(near)) == 3
    if wrong:
        assert f"`{meant}`" in near


def test_nearest_keys_come_best_first():
    assert nearest("b.cdx", ["a.bc", "b.cd", "x.y", "b.zz"])[0] == "b.cd"
    assert nearest("lr", ["a.left", "a.part_lr", "a.lr"]) == ["a.lr", "a.part_lr", "a.left"]


def test_every_option_has_a_description(builtin):
    assert [option.key for option in builtin if not option.description] == []


def test_every_default_is_yaml(builtin):
    for option in builtin:
        if option.default not in (REQUIRED, "(not used)"):
            assert as_yaml(yaml.safe_load(option.default)) == option.default


def _keys(values, path=()):
    for key, value in values.items():
        if key != "name" or not path:
            yield (*path, key)
        if isinstance(value, dict) and key != "arguments":
            yield from _keys(value, (*path, key))


@pytest.mark.parametrize(
    "name", [name for name in shipped_configs() if "/" not in name or "imagenet" in name]
)
def test_every_key_of_a_shipped_configuration_is_in_the_reference(name, builtin):
    resolved = load_config(name).model_dump(mode="json")
    unknown = [key for key in _keys(resolved) if not any(option.answers_to(key) for option in builtin)]
    assert unknown == []


def test_options_of_a_third_party_part_are_explained(install):
    install("gaussian-part", "gaussian_part", MODEL_SOURCE, "gaussian", "Gaussian")
    text = explain("model.std")
    assert "1.0" in text
    assert "model: gaussian" in text


def test_part_that_does_not_load_is_named_and_hides_no_other(install, caplog):
    install("broken-part", "broken_part", "import no_such_package\n", "broken", "Broken")
    assert "768" in explain("model.flow.width")
    assert len(caplog.messages) == 1
    assert "broken-part" in caplog.messages[0]
    with pytest.raises(ConfigError, match="no such key"):
        explain("model.no_such_option")
