"""Runs with different models see the same batches: images, order, augmentation, labels, noise of the posterior."""

import pytest
import torch

from simflow_plugin.evaluation.drawing import ImageSampler, class_labels
from simflow_plugin.objective import JointObjective
from simflow_plugin.randomness import IndexedRandom
from simflow_plugin.runs.parts import build_parts
from simflow_plugin.runs.run_precision import Precision
from tests.training.tiny_runs import TINY_OPTIONS, make_trainer, tiny_config

MODELS = list(TINY_OPTIONS)
STEPS = 3


def recorded_batches(model, path, monkeypatch):
    """Train a few steps; return what the joint objective was given at each of them."""
    seen = []
    forward = JointObjective.forward

    def recording(self, batch, *arguments):
        noise = batch.random.normal("posterior", (len(batch.images), 2))
        seen.append((batch.images.clone(), batch.labels.clone(), noise))
        return forward(self, batch, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(JointObjective, "forward", recording)
        config = tiny_config(model, steps=STEPS, horizontal_flip=True, sample_every=99, checkpoint_every=99)
        make_trainer(config, path).train()
    return seen


@pytest.mark.parametrize("model", [*MODELS[1:], None])
def test_every_model_is_trained_on_the_same_batches(model, tmp_path, monkeypatch):
    reference, other = (recorded_batches(m, tmp_path / f"{m}", monkeypatch) for m in (MODELS[0], model))
    assert len(reference) == len(other) == STEPS
    for first, second in zip(reference, other, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("model", MODELS)
def test_samples_start_from_the_same_noise(model, monkeypatch):
    config = tiny_config(model)
    parts = build_parts(config, 10)
    drawn = []
    normal = IndexedRandom.normal

    def recording(self, purpose, shape, device="cpu"):
        noise = normal(self, purpose, shape, device)
        drawn.append((purpose, noise.clone()))
        return noise

    monkeypatch.setattr(IndexedRandom, "normal", recording)
    joint = parts.joint.eval()
    precision = Precision.of_training(config.training, "cpu")
    sampler = ImageSampler(joint.autoencoder, joint.model, config.image_size, precision, seed=5)
    sampler.draw([0, 1], class_labels([0, 1], 10))
    shape = (2, *joint.autoencoder.latent_shape(config.image_size))
    purpose, noise = drawn[0]
    assert purpose == "latent"
    assert torch.equal(noise, normal(IndexedRandom(5, (0, 1)), "latent", shape))
