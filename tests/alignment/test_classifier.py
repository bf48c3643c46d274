import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from simflow_plugin.alignment.classifier import FORMAT, ClassifierEncoder, load_classifier
from simflow_plugin.alignment.pretraining import PretrainingOptions, pretrain_classifier, shift_images
from simflow_plugin.contracts import DataContext
from simflow_plugin.data.digits import Digits
from simflow_plugin.errors import ConfigError, DataError, WeightsError
from tests.commands import simflow, succeed

SMALL = {"data": "digits", "image_size": 16, "width": 32, "depth": 1, "num_heads": 2, "batch_size": 64}


def digits(split: str) -> Digits:
    return Digits(Digits.Options(), DataContext(16, split))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A classifier file that the command made."""
    path = tmp_path_factory.mktemp("encoder") / "digits.safetensors"
    arguments = ["--data", "digits", "--image-size", "16", "--steps", "2", "--batch-size", "32"]
    assert "test accuracy" in succeed("pretrain-encoder", *arguments, "--out", path)
    return path


def encoder(path, image_size=16) -> ClassifierEncoder:
    return ClassifierEncoder(ClassifierEncoder.Options(checkpoint=str(path)), DataContext(image_size, "test"))


def test_training_learns():
    _, card = pretrain_classifier(PretrainingOptions(**SMALL, steps=100), digits("train"), digits("test"))
    assert card.test_accuracy > 0.6
    assert card.num_test == 359


def test_training_is_a_function_of_the_seed():
    options = PretrainingOptions(**SMALL, steps=2)
    first, _ = pretrain_classifier(options, digits("train"), digits("test"))
    second, _ = pretrain_classifier(options, digits("train"), digits("test"))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_card_survives_the_file(trained):
    _, card = load_classifier(trained)
    assert card.data == "digits"
    assert list(card.class_names) == [str(digit) for digit in range(10)]
    assert 0 <= card.test_accuracy <= 1
    with safe_open(trained, "pt") as file:
        assert json.loads(file.metadata()["card"])["architecture"]["model"] == "vit_tiny_patch16_224"


def test_features_and_logits_have_their_shapes(trained):
    part = encoder(trained)
    images = torch.zeros(2, 3, 16, 16)
    assert part.encode(images).shape == (2, 16, part.feature_dim)
    assert part.grid_size(16) == (4, 4)
    assert part.logits(images).shape == (2, 10)
    assert encoder(trained, 32).encode(torch.zeros(1, 3, 32, 32)).shape[1] == 16  # resized


def test_missing_file_says_how_to_make_it(tmp_path):
    with pytest.raises(WeightsError, match=r"simflow pretrain-encoder"):
        encoder(tmp_path / "none.safetensors")


def test_foreign_file_is_refused(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="format None"):
        encoder(tmp_path / "other.safetensors")


def test_file_with_other_keys_is_refused(trained, tmp_path):
    with safe_open(trained, "pt") as file:
        metadata = file.metadata()
    save_file({"weight": torch.zeros(2)}, tmp_path / "empty.safetensors", metadata)
    with pytest.raises(WeightsError, match="1 unexpected: weight"):
        encoder(tmp_path / "empty.safetensors")


@pytest.mark.parametrize("card", [None, "[]", "[" * 100_000, "{}", '{"architecture": 1}', "nonsense"])
def test_description_of_any_content_is_refused(trained, tmp_path, card):
    metadata = {"format": FORMAT} | ({} if card is None else {"card": card})
    save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors", metadata)
    with pytest.raises(WeightsError, match="no card of a classifier"):
        load_classifier(tmp_path / "a.safetensors")


@pytest.mark.parametrize("argument", [{"pretrained": True}, {"checkpoint_path": "other.pth"}])
def test_description_may_not_have_other_weights_read(trained, tmp_path, argument):
    with safe_open(trained, "pt") as file:
        metadata = file.metadata()
    card = json.loads(metadata["card"])
    card["architecture"] |= argument
    save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors", {**metadata, "card": json.dumps(card)})
    with pytest.raises(
        (ConfigError, WeightsError), match=f"multiple values for keyword argument '{next(iter(argument))}'"
    ):
        load_classifier(tmp_path / "a.safetensors")


def test_torn_file_is_refused(trained, tmp_path):
    (tmp_path / "torn.safetensors").write_bytes(trained.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="not a readable safetensors"):
        encoder(tmp_path / "torn.safetensors")


def test_existing_file_is_not_replaced(trained):
    before = trained.read_bytes()
    status, output = simflow("pretrain-encoder", "--data", "digits", "--out", trained)
    assert status == 2
    assert "--overwrite" in output
    assert trained.read_bytes() == before


def test_unlabelled_data_is_refused():
    train = digits("train")
    train.num_classes = train.class_names = None
    with pytest.raises(DataError, match="no labels"):
        pretrain_classifier(PretrainingOptions(**SMALL, steps=1), train, digits("test"))


def test_patch_that_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match="16 is not divisible by the patch size 5"):
        PretrainingOptions(**SMALL, patch_size=5).architecture(10)


def test_model_that_timm_cannot_build_is_refused():
    options = PretrainingOptions(**SMALL, model="no_such_network", steps=1)
    with pytest.raises(ConfigError, match="no_such_network"):
        pretrain_classifier(options, digits("train"), digits("test"))


def test_shifts_stay_within_a_pixel():
    images = torch.arange(64.0).view(1, 1, 8, 8).expand(9, 3, 8, 8)
    steps = torch.arange(3) / 3
    shifted = shift_images(images, torch.cartesian_prod(steps, steps))
    assert torch.equal(shifted[4], images[4])
    assert torch.equal(shifted[0][:, 1:, 1:], images[0][:, :-1, :-1])
    assert torch.equal(shifted[8][:, :-1, :-1], images[0][:, 1:, 1:])
