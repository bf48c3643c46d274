"""Autoguidance of the diffusion models: a weaker model in place of the unconditional half, in every sampler."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from simflow_plugin.contracts import ModelContext
from simflow_plugin.errors import ConfigError
from simflow_plugin.randomness import IndexedRandom
from simflow_plugin.registry import MODELS
from tests.models.diffusion_settings import SHAPE, build, every_model, every_sampler


def build_exact(name: str, *arguments: Any, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    return build(name, *arguments, **options).double()


class InFloat64:
    """The same draws in float64, so that only an error shows."""

    def normal(self, *arguments: Any) -> torch.Tensor:
        return IndexedRandom(7, (0, 1, 2)).normal(*arguments).double()


def draw(model: Any, guidance: float, labels: torch.Tensor | None) -> torch.Tensor:
    return model.sample(labels, (3, *SHAPE), guidance, InFloat64())


LABELS = torch.tensor([0, 3, 4])


@every_sampler
def test_a_model_guided_by_itself_is_itself_at_every_weight(name: str, sampling: dict[str, Any]) -> None:
    model = build_exact(name, sampling)
    itself, plain = model.guided_by(model), draw(model, 0.0, LABELS)
    for weight in (0.0, 0.5, 3.0):
        torch.testing.assert_close(draw(itself, weight, LABELS), plain, rtol=0, atol=1e-9)


@every_sampler
def test_a_guide_without_labels_gives_classifier_free_guidance(name: str, sampling: dict[str, Any]) -> None:
    """The guide is the model that sees no label: its null embedding moves into the bias of the embedding of time."""
    model, guide = build_exact(name, sampling), build_exact(name, sampling, num_classes=None)
    state = dict(model.state_dict())
    table = state.pop("backbone.label_embed.table.weight")
    last = [key for key in state if key.startswith("backbone.time_embed") and key.endswith("bias")][-1]
    state[last] = state[last] + table[-1]
    guide.load_state_dict(state)
    expected = draw(model, 1.5, LABELS)
    torch.testing.assert_close(draw(model.guided_by(guide), 1.5, LABELS), expected, rtol=0, atol=1e-9)
    assert float((expected - draw(model, 0.0, LABELS)).abs().max()) > 1e-4


@every_model
def test_a_model_without_unconditional_half_or_labels_can_be_guided(name: str) -> None:
    guide = build_exact(name, seed=1)
    undropped = build_exact(name, label_dropout=0.0)
    with pytest.raises(ConfigError, match="no unconditional half"):
        draw(undropped, 1.0, LABELS)
    assert undropped.guided_by(guide).sample(LABELS, (3, *SHAPE), 1.0, InFloat64()).isfinite().all()
    plain, other = build_exact(name, num_classes=None), build_exact(name, num_classes=None, seed=1)
    assert not torch.equal(draw(plain.guided_by(other), 1.0, None), draw(plain, 0.0, None))


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (("dit", {}), "the guide is a DiT, but guides a SiT"),
        (("sit", {"num_classes": 4}), "num_classes is 4, the model's 5"),
        (("sit", {"interpolant": "cosine"}), "interpolant is cosine, the model's linear"),
        (("sit", {"normalizes_latents": True}), "normalizes_latents is True"),
    ],
)
def test_guides_that_do_not_fit_are_refused(guide: tuple[str, dict[str, Any]], message: str) -> None:
    name, options = guide
    with pytest.raises(ConfigError, match=message):
        build_exact("sit").guided_by(build_exact(name, **options))


def test_a_flow_of_latents_with_other_noise_is_refused() -> None:
    factory = MODELS.get("starflow")
    flow = {"width": 16, "layers_per_block": [1, 1], "head_dim": 8, "patch_size": 2}
    quiet, noisy = (
        factory(factory.Options.model_validate({"flow": flow, "noise_std": std}), ModelContext(SHAPE, 5))
        for std in (0.1, 0.3)
    )
    with pytest.raises(ConfigError, match=r"the guide's noise_std is 0\.1, the model's 0\.3"):
        noisy.guided_by(quiet)
    assert noisy.guided_by(noisy).guide is noisy


def test_the_guide_is_no_part_of_the_models_state() -> None:
    model, guide = build_exact("sit"), build_exact("sit", seed=1)
    guided = model.guided_by(guide)
    assert model.guide is None
    assert list(guided.state_dict()) == list(model.state_dict())
