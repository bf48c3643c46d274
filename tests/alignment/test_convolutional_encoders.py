"""Alignment targets of timm's convolutional networks: a stage by number, at any input size, weights checked."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from simflow_plugin.alignment.head import AlignmentHead
from simflow_plugin.alignment.timm_encoders import TimmEncoder, plan_encoder
from simflow_plugin.contracts import AlignmentContext, DataContext
from simflow_plugin.errors import ConfigError, WeightsError

KINDS = ["test_efficientnet", "test_resnet", "test_convnext", "test_vit"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Return a function: name in timm -> file of random weights, with a classifier of seven classes."""
    folder, paths = tmp_path_factory.mktemp("weights"), {}

    def make(model):
        if model not in paths:
            torch.manual_seed(0)
            paths[model] = folder / f"{model}.safetensors"
            save_file(timm.create_model(model, num_classes=7).state_dict(), paths[model])
        return str(paths[model])

    return make


def build(checkpoint, model="test_efficientnet", image_size=64, **options) -> TimmEncoder:
    options = {"model": model, "checkpoint": checkpoint(model), **options}
    return TimmEncoder(TimmEncoder.Options(**options), DataContext(image_size, "train"))


@pytest.mark.parametrize("model", KINDS)
@pytest.mark.parametrize("stage", [None, 0, 2])
def test_features_of_every_kind_fill_a_square_grid(checkpoint, model, stage):
    encoder = build(checkpoint, model, stage=stage)
    rows, columns = encoder.grid_size(64)
    features = encoder.encode(torch.rand(2, 3, 64, 64) * 2 - 1)
    assert rows == columns
    assert features.shape == (2, rows * columns, encoder.feature_dim)


@pytest.mark.parametrize("model", KINDS[:3])
def test_features_are_those_of_timm_in_raster_order(checkpoint, model):
    encoder = build(checkpoint, model, stage=1)
    network = timm.create_model(model, num_classes=7, checkpoint_path=checkpoint(model)).eval()
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    maps = network.forward_intermediates(encoder.preprocess(images), indices=[1], intermediates_only=True)[0]
    tokens = encoder.encode(images)
    columns = maps.shape[-1]
    for row, column in ((0, 1), (1, 0), (columns - 1, columns - 1)):
        torch.testing.assert_close(
            tokens[:, row * columns + column], maps[:, :, row, column], atol=1e-4, rtol=1e-4
        )


def test_images_are_enlarged_to_the_input_size(checkpoint):
    small, large = build(checkpoint, stage=4), build(checkpoint, stage=4, input_size=128)
    assert (small.grid_size(64), large.grid_size(64)) == ((2, 2), (4, 4))


def test_frozen_convolutional_encoder_does_not_move_its_statistics(checkpoint):
    encoder = build(checkpoint).train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder.encode(torch.rand(4, 3, 64, 64) * 2 - 1)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_features_are_resampled_to_the_grid_of_the_latents(checkpoint):
    encoder = build(checkpoint, stage=3)
    head = AlignmentHead(8, AlignmentContext(encoder.feature_dim, 1, 16))
    hidden = torch.randn(2, 9, 8, requires_grad=True)
    loss = head(hidden, (3, 3), encoder.encode(torch.rand(2, 3, 64, 64)))
    loss.backward()
    assert hidden.grad.abs().sum() > 0


def test_stage_that_is_not_there_says_how_many_there_are(checkpoint):
    with pytest.raises(ConfigError, match=r"stage 5: `test_efficientnet` has 5 stages, 0 to 4"):
        build(checkpoint, stage=5)


def test_block_of_a_transformer_that_is_not_there_says_how_many_there_are(checkpoint):
    with pytest.raises(ConfigError, match=r"stage 9: `test_vit` has 6 blocks, 0 to 5"):
        build(checkpoint, "test_vit", stage=9)


def test_weights_of_another_network_are_named(checkpoint):
    with pytest.raises(WeightsError, match=r"test_resnet\.safetensors: .*missing: "):
        build(lambda model: checkpoint("test_resnet"))


def test_network_without_intermediate_features_is_refused(monkeypatch):
    monkeypatch.delattr(timm.models.resnet.ResNet, "forward_intermediates")
    with pytest.raises(ConfigError, match="`test_resnet` gives no intermediate features"):
        plan_encoder("test_resnet", 64, None, None)
