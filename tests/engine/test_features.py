"""Alignment features: what the cache gives is what the encoder would have said, mirrored images included."""

import pytest
import torch
from torch import nn

from simflow_plugin.config import Alignment, Part, load_config
from simflow_plugin.contracts import DataContext
from simflow_plugin.data.digits import Digits
from simflow_plugin.data.loader import make_loader
from simflow_plugin.engine.features import AlignmentFeatures, build_feature_cache


class PixelEncoder(nn.Module):
    """Features are the pixels themselves, one token a row; counts its calls."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()), requires_grad=False)
        self.calls = 0

    def encode(self, images):
        self.calls += 1
        return self.weight * images.mean(dim=1)


def aligned_config(*overrides):
    config = load_config("quickstart", ["image_size=8", "training.batch_size=16", *overrides])
    alignment = Alignment(encoder=Part(name="pretrained"), cache=True)
    return config.model_copy(update={"alignment": alignment})


@pytest.mark.parametrize("flip", [False, True])
def test_cached_features_equal_computed_ones(tmp_path, monkeypatch, flip):
    monkeypatch.setenv("SIMFLOW_DATA", str(tmp_path))
    config = aligned_config(f"training.horizontal_flip={flip}")
    dataset = Digits(Digits.Options(), DataContext(8, "test"))
    encoder = PixelEncoder()
    cache = build_feature_cache(encoder, config, dataset)
    cached, direct = AlignmentFeatures(encoder, cache), AlignmentFeatures(encoder, None)
    for batch in make_loader(dataset, 16, config.seed, 3, 4, horizontal_flip=flip):
        found, expected = cached(batch, batch.images), direct(batch, batch.images)
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_cache_is_built_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SIMFLOW_DATA", str(tmp_path))
    config = aligned_config()
    dataset = Digits(Digits.Options(), DataContext(8, "test"))
    encoder = PixelEncoder()
    build_feature_cache(encoder, config, dataset)
    calls = encoder.calls
    build_feature_cache(encoder, config, dataset)
    assert encoder.calls == calls > 0
