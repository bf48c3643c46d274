"""A published backbone, fine-tuned to classify: judge, features and extractor like a classifier from scratch."""

import pytest
import timm
import torch
from safetensors.torch import load_file

from simflow_plugin.alignment.backbone_classifier import BackboneClassifier
from simflow_plugin.alignment.classifier import ClassifierEncoder, load_classifier
from simflow_plugin.contracts import DataContext
from simflow_plugin.evaluation.extractors import build_extractor
from tests.commands import simflow

MODEL = "test_efficientnet"


@pytest.fixture(scope="module")
def published(random_weights):
    return random_weights(MODEL)


def command(*arguments):
    fixed = "pretrain-encoder --data digits --image-size 16 --steps 1 --batch-size 32"
    return simflow(*fixed.split(), *arguments)


@pytest.fixture(scope="module")
def tuned(published, tmp_path_factory):
    """A classifier file that the command made: digits at 32 pixels on the published backbone."""
    path = tmp_path_factory.mktemp("tuned") / "digits.safetensors"
    options = ["--fine-tune", MODEL, "--weights", published, "--input-size", 32, "--horizontal-flip"]
    assert "test accuracy" in command(*options, "--out", path)[1]
    return path


def test_training_starts_from_the_published_weights(published):
    network = BackboneClassifier({"model": MODEL, "img_size": 32, "num_classes": 10})
    network.load_published(published)
    expected = load_file(published)
    own = network.trunk.state_dict()
    assert all(torch.equal(own[name], expected[name]) for name in own if not name.startswith("classifier"))


def test_a_step_moves_backbone_and_classifier(published, tuned):
    network, _ = load_classifier(tuned)
    before, after = load_file(published), network.trunk.state_dict()
    assert not torch.equal(after["conv_stem.weight"], before["conv_stem.weight"])
    assert after["classifier.weight"].shape[0] == 10


def test_card_keeps_size_and_normalisation_of_the_backbone(tuned):
    _, card = load_classifier(tuned)
    config = timm.get_pretrained_cfg(MODEL)
    assert (card.architecture["img_size"], tuple(card.mean)) == (32, tuple(config.mean))


def test_features_and_logits_have_their_shapes(tuned):
    encoder = ClassifierEncoder(ClassifierEncoder.Options(checkpoint=str(tuned)), DataContext(16, "test"))
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    rows, columns = encoder.grid_size(16)
    assert encoder.encode(images).shape == (2, rows * columns, encoder.feature_dim)
    assert encoder.logits(images).shape == (2, 10)


def test_it_is_an_extractor_of_features_and_logits(tuned):
    features = build_extractor("pretrained", tuned)(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    network, _ = load_classifier(tuned)
    assert features.pooled.shape == (2, network.num_features)
    assert features.logits.shape == (2, 10)


def test_missing_weights_are_named_before_training(tmp_path):
    missing = ["--weights", tmp_path / "none.pth", "--out", tmp_path / "out.safetensors"]
    status, output = command("--fine-tune", MODEL, *missing)
    assert status == 2
    assert "none.pth: no such file" in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--input-size", "32"], "have no effect without --fine-tune"),
        (["--fine-tune", MODEL, "--model", "vit_tiny_patch16_224"], "give one of them"),
    ],
)
def test_options_that_clash_are_refused(tmp_path, options, message):
    status, output = command(*options, "--out", tmp_path / "out.safetensors")
    assert status == 2
    assert message in output
