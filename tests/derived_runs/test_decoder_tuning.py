"""The second stage: the decoder alone changes, encoder and flow stay those of the parent, bit for bit."""

import shutil

import pytest
import torch

from simflow_plugin.config.loading import config_from_source
from simflow_plugin.config.yaml_source import YamlSource
from simflow_plugin.derived_runs.decoder_tuning import decoder_values
from simflow_plugin.derived_runs.parent import DerivedRun, derived_config
from simflow_plugin.errors import ConfigError, WeightsError
from simflow_plugin.evaluation.drawing import ImageSampler, class_labels
from simflow_plugin.evaluation.flops import measure_run
from simflow_plugin.runs.loaded_run import load_run
from simflow_plugin.runs.parts import build_parts
from simflow_plugin.runs.run_directory import RunDirectory
from tests.evaluation.runs import make_run
from tests.training.tiny_runs import make_trainer

OVERRIDES = ("training.steps=3", "optimizer.warmup_steps=0", "training.checkpoint_every=3")


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """The directories of a parent and of its second stage."""
    folder = tmp_path_factory.mktemp("stages")
    parent = make_run(folder / "parent")
    derived = DerivedRun(parent, RunDirectory(folder / "tuned"), overrides=OVERRIDES)
    make_trainer(derived_config(derived, decoder_values), folder / "tuned").train()
    return parent, folder / "tuned"


@pytest.fixture(scope="module")
def loaded(stages):
    return tuple(load_run(path, "cpu") for path in stages)


def test_decoder_moves_and_nothing_else(loaded):
    before, after = (
        {f"autoencoder.{k}": v for k, v in run.autoencoder.state_dict().items()}
        | {f"model.{k}": v for k, v in run.model.state_dict().items()}
        for run in loaded
    )
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("autoencoder.network.decoder.") for name in moved)


def test_latents_and_likelihood_are_those_of_the_parent(loaded):
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    before, after = (run.autoencoder.encode(images).mean for run in loaded)
    assert torch.equal(before, after)
    labels = torch.tensor([0, 1, 2])
    before, after = (run.model.log_prob(before, labels) for run in loaded)
    assert torch.equal(before, after)


def test_result_samples_without_its_parent(stages, loaded, tmp_path):
    copy = shutil.copytree(stages[1], tmp_path / "copy")
    shutil.rmtree(copy / ".parent")
    labels = class_labels(range(2), 10)
    images = ImageSampler.of_run(load_run(copy, "cpu")).draw(range(2), labels)
    parents = ImageSampler.of_run(loaded[0]).draw(range(2), labels)
    assert images.shape == parents.shape
    assert not torch.equal(images, parents)


def test_training_cost_leaves_the_frozen_model_out(loaded):
    before, after = (measure_run(run, 0.0) for run in loaded)
    assert after.model_parameters == before.model_parameters
    assert after.training_flops < before.training_flops
    assert after.sampling_flops == before.sampling_flops


def test_defaults_are_a_tenth_of_the_steps_with_an_adversary_that_fits(stages, tmp_path):
    derived = DerivedRun(stages[0], RunDirectory(tmp_path / "out"), overrides=OVERRIDES[1:2])
    config = derived_config(derived, decoder_values)
    assert config.name == "tiny-decoder"
    assert config.training.steps == 1
    assert config.objective.adversarial.num_layers == 1
    assert config.autoencoder.options["trainable"] == "decoder"
    assert config.frozen_model.source.startswith("tiny at step")


def test_changed_weights_of_the_parent_are_refused(stages, tmp_path):
    derived = DerivedRun(stages[0], RunDirectory(tmp_path / "out"), overrides=OVERRIDES)
    config = derived_config(derived, decoder_values)
    file = tmp_path / "out" / ".parent" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    with pytest.raises(WeightsError, match=r"frozen_model\.weights: .*its SHA-256 is not .* new run"):
        build_parts(config, 10)
    file.unlink()
    with pytest.raises(WeightsError, match="no such file"):
        build_parts(config, 10)


@pytest.mark.parametrize("change", [{"trainable": "full"}, {"trainable": "none"}])
def test_frozen_model_with_an_encoder_that_moves_is_refused(stages, change):
    values = load_run(stages[1], "cpu").config.model_dump(mode="json")
    values["autoencoder"] |= change
    values["objective"]["adversarial"] = None
    with pytest.raises(ConfigError, match="frozen_model keeps the model as it is"):
        config_from_source(YamlSource(values, {}, "a.yaml"))
