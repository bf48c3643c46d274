"""What caches of frozen networks give is what the networks would have said, mirrored images included."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from simflow_plugin.autoencoders.kl import KLAutoencoder
from simflow_plugin.config.loading import load_config
from simflow_plugin.config.schema import Alignment
from simflow_plugin.contracts import Autoencoder, DataContext
from simflow_plugin.data.digits import Digits
from simflow_plugin.data.image_folder import ImageFolder
from simflow_plugin.data.loader import make_loader
from simflow_plugin.data.order import GlobalBatches
from simflow_plugin.errors import ConfigError
from simflow_plugin.registry import Part
from simflow_plugin.training.distributed.processes import Processes
from simflow_plugin.training.frozen_networks import FrozenNetworks, build_feature_cache
from simflow_plugin.training.interrupts import Interrupted
from tests.data.makers import png
from tests.training.tiny_runs import (
    StopAfter,
    assert_runs_equal,
    losses_of,
    make_trainer,
    tiny_config,
    tiny_values,
)


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


@pytest.fixture
def digits(tmp_path, monkeypatch):
    monkeypatch.setenv("SIMFLOW_DATA", str(tmp_path / "cache"))
    return Digits(Digits.Options(), DataContext(8, "test"))


@pytest.mark.parametrize("flip", [False, True])
def test_cached_features_equal_computed_ones(digits, flip):
    config = aligned_config(f"training.horizontal_flip={flip}")
    encoder = PixelEncoder()
    parts = SimpleNamespace(encoder=encoder, joint=SimpleNamespace(autoencoder=nn.Linear(1, 1)))
    networks = FrozenNetworks(parts, config, digits, Processes(1))
    calls = encoder.calls
    for batch in make_loader(digits, GlobalBatches(16), config.seed, range(3, 7), horizontal_flip=flip):
        found, expected = networks.features(batch, batch.images), encoder.encode(batch.images)
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert encoder.calls == calls + 4  # those of this test


def test_cache_is_built_once(digits):
    config = aligned_config()
    encoder = PixelEncoder()
    build_feature_cache(encoder, config, digits, Processes(1))
    calls = encoder.calls
    build_feature_cache(encoder, config, digits, Processes(1))
    assert encoder.calls == calls > 0


def test_retrained_encoder_at_the_same_path_has_its_own_cache(digits):
    config = aligned_config()
    retrained = PixelEncoder()
    retrained.weight.data.fill_(2.0)
    first, second = (
        build_feature_cache(encoder, config, digits, Processes(1)) for encoder in (PixelEncoder(), retrained)
    )
    rows = torch.arange(4)
    torch.testing.assert_close(2 * first.read(rows), second.read(rows), atol=1e-3, rtol=1e-3)


def test_same_relative_path_in_another_folder_has_its_own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SIMFLOW_DATA", str(tmp_path / "cache"))
    config = aligned_config()
    means = []
    for folder, grey in (("one", 40), ("two", 200)):
        (tmp_path / folder / "images").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / folder)
        for number in range(10):
            (tmp_path / folder / "images" / f"{number}.png").write_bytes(png(grey))
        dataset = ImageFolder(ImageFolder.Options(root="images"), DataContext(8, "train"))
        data = Part(name="image_folder", options={"root": "images"})
        cache = build_feature_cache(
            PixelEncoder(), config.model_copy(update={"data": data}), dataset, Processes(1)
        )
        means.append(float(cache.read(torch.arange(4)).mean()))
    assert means == pytest.approx([40 / 127.5 - 1, 200 / 127.5 - 1], abs=1e-3)


# ---------------------------------------------------------------------- latents of a frozen encoder


def frozen_run(model, trainable="none", **training):
    values = tiny_values(model, log_every=1, **training)
    values["autoencoder"]["trainable"] = trainable
    values["autoencoder"]["posterior"] = "learnable"
    return tiny_config(values=values)


@pytest.mark.parametrize(("model", "trainable"), [("sit", "none"), ("starflow", "decoder")])
def test_run_on_cached_latents_has_the_losses_of_one_that_encodes(tmp_path, monkeypatch, model, trainable):
    monkeypatch.setenv("SIMFLOW_DATA", str(tmp_path / "cache"))
    plain = make_trainer(frozen_run(model, trainable, horizontal_flip=True), tmp_path / "plain")
    plain.train()
    cached = frozen_run(model, trainable, horizontal_flip=True, cache_latents=True)
    trainer = make_trainer(cached, tmp_path / "cached")
    with monkeypatch.context() as patch:
        patch.setattr(trainer.joint.autoencoder, "moments", None)  # nobody may ask the encoder again
        trainer.train()
    assert [row["loss"] for row in losses_of(tmp_path / "cached")] == pytest.approx(
        [row["loss"] for row in losses_of(tmp_path / "plain")], rel=1e-4
    )


def test_resumed_run_on_cached_latents_is_bitwise_equal(tmp_path, monkeypatch):
    monkeypatch.setenv("SIMFLOW_DATA", str(tmp_path / "cache"))
    config = frozen_run("starflow", "decoder", cache_latents=True)
    make_trainer(config, tmp_path / "whole").train()
    with pytest.raises(Interrupted):
        make_trainer(config, tmp_path / "parts", StopAfter(3)).train()
    make_trainer(config, tmp_path / "parts").train()
    assert_runs_equal(tmp_path / "whole", tmp_path / "parts")
    assert len(list((tmp_path / "cache" / "moments").iterdir())) == 1


def test_autoencoder_without_moments_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("SIMFLOW_DATA", str(tmp_path))
    monkeypatch.setattr(KLAutoencoder, "moments", Autoencoder.moments)
    with pytest.raises(ConfigError, match=r"cache_latents: autoencoder `kl`: KLAutoencoder gives no moments"):
        make_trainer(frozen_run("sit", cache_latents=True), tmp_path / "run")


def test_latents_of_an_encoder_that_trains_are_not_cached():
    with pytest.raises(ConfigError, match=r"cache_latents .*trainable is full"):
        tiny_config("simflow", cache_latents=True)
