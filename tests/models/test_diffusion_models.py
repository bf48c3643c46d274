"""What holds for every diffusion model of the harness: training, guidance, indices, alignment, bad input."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from simflow_plugin.contracts import NO_LABEL, ModelContext
from simflow_plugin.diffusion.diffusion_model import DiffusionModel
from simflow_plugin.errors import ConfigError, ShapeError
from simflow_plugin.randomness import BatchRandom, IndexedRandom
from tests.models.diffusion_settings import BACKBONE, SHAPE, build, every_model, every_sampler


def batch(rows: int = 4) -> tuple[torch.Tensor, torch.Tensor, BatchRandom]:
    latents = torch.randn(rows, *SHAPE, generator=torch.Generator().manual_seed(0))
    return latents, torch.arange(rows) % 5, BatchRandom(seed=0, step=0, offset=0, global_batch_size=rows)


def draw(model: DiffusionModel, indices: tuple[int, ...], guidance: float = 0.0) -> torch.Tensor:
    labels = torch.tensor(indices) % 5
    return model.sample(labels, (len(indices), *SHAPE), guidance, IndexedRandom(7, indices))


@every_model
def test_two_training_steps_change_every_weight(name: str) -> None:
    model = build(name, alignment_layer=1).train()
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    latents, labels, random = batch()
    for _ in range(2):
        loss = sum(model.training_losses(latents, labels, torch.randn(4, 16, 6), random).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(not torch.equal(before[key], p) for key, p in model.named_parameters())


@every_model
def test_training_learns_one_point(name: str) -> None:
    torch.manual_seed(0)
    model = build(name)
    latents = torch.ones(16, *SHAPE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(60):
        random = BatchRandom(0, step, 0, 16)
        loss = model.training_losses(latents, None, None, random)["denoising"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


@every_model
def test_terms_are_finite_scalars_in_float32(name: str) -> None:
    latents, labels, random = batch()
    terms = build(name, alignment_layer=2).training_losses(latents, labels, torch.randn(4, 4, 6), random)
    assert set(terms) == {"denoising", "alignment"}
    assert all(t.shape == () and t.dtype == torch.float32 and t.isfinite() for t in terms.values())


@every_model
def test_losses_are_the_same_for_the_same_draws(name: str) -> None:
    model = build(name)
    latents, labels, random = batch()
    first, second = (model.training_losses(latents, labels, None, random)["denoising"] for _ in range(2))
    assert torch.equal(first, second)


@every_model
def test_denoising_and_alignment_reach_the_latents(name: str) -> None:
    model = build(name, alignment_layer=1)
    latents, labels, random = batch()
    latents.requires_grad_()
    terms = model.training_losses(latents, labels, torch.randn(4, 16, 6), random)
    for term in terms.values():  # the model never detaches; the harness routes by `coupled_terms`
        (gradient,) = torch.autograd.grad(term, latents, retain_graph=True)
        assert gradient.abs().sum() > 0
    assert model.coupled_terms == {"alignment"}


@every_sampler
def test_sample_depends_on_its_index_only(name: str, sampling: dict[str, Any]) -> None:
    model = build(name, sampling)
    together = draw(model, (3, 4, 5), guidance=0.5)
    alone = draw(model, (4,), guidance=0.5)
    # Products of another size round otherwise, and early steps of a solver magnify that.
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-3 * float(alone.abs().max()))


@every_sampler
def test_sample_is_repeatable_and_finite(name: str, sampling: dict[str, Any]) -> None:
    model = build(name, sampling)
    first = draw(model, (0, 1))
    assert torch.equal(first, draw(model, (0, 1)))
    assert first.isfinite().all()
    assert first.shape == (2, *SHAPE)


@every_sampler
def test_guidance_of_zero_is_the_conditional_model(name: str, sampling: dict[str, Any]) -> None:
    model = build(name, {**sampling, "num_steps": 2})
    # Guidance is linear in its weight: its limit at 0 is the unguided sample.
    plain, tiny, strong = (draw(model, (0, 1), weight) for weight in (0.0, 1e-6, 2.0))
    size = float(plain.abs().max())
    assert (plain - tiny).abs().max() < 1e-3 * size
    assert (plain - strong).abs().max() > 1e-2 * size


@every_model
def test_bfloat16_network_leaves_losses_and_samples_in_float32(name: str) -> None:
    model = build(name, alignment_layer=1)
    latents, labels, random = batch()
    exact_terms = model.training_losses(latents, labels, torch.ones(4, 4, 6), random)
    exact_samples = draw(model, (0, 1), guidance=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.training_losses(latents, labels, torch.ones(4, 4, 6), random)
        samples = draw(model, (0, 1), guidance=1.0)
    for term, value in terms.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact_terms[term], rtol=0.05, atol=0.05)
    assert samples.dtype == torch.float32
    assert (samples - exact_samples).norm() < 0.05 * exact_samples.norm()


@every_model
def test_guidance_outside_the_interval_has_no_effect(name: str) -> None:
    # The times of a four-step sampler avoid (0.01, 0.02).
    model = build(name, {"guidance_rule": {"name": "classifier_free", "interval": [0.01, 0.02]}})
    assert torch.equal(draw(model, (0, 1), guidance=3.0), draw(model, (0, 1)))


@every_model
def test_sampling_leaves_the_model_as_it_was(name: str) -> None:
    model = build(name).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    draw(model, (0,))
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@every_model
def test_label_dropout_drops_the_stated_share(name: str) -> None:
    model = build(name, label_dropout=0.3)
    seen: list[torch.Tensor] = []
    model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[2]))
    latents, labels = torch.zeros(2000, *SHAPE), torch.zeros(2000, dtype=torch.int64)
    model.training_losses(latents, labels, None, BatchRandom(0, 0, 0, 2000))
    assert abs((seen[0] == NO_LABEL).float().mean() - 0.3) < 0.04


@every_model
def test_features_without_an_alignment_head_are_refused(name: str) -> None:
    latents, labels, random = batch()
    with pytest.raises(ConfigError, match="built without alignment, so it keeps no hidden tokens"):
        build(name).training_losses(latents, labels, torch.randn(4, 4, 6), random)


@every_model
@pytest.mark.parametrize("layer", [0, 3])
def test_alignment_of_a_layer_that_does_not_exist_is_refused(name: str, layer: int) -> None:
    with pytest.raises(ConfigError, match=rf"alignment.layer is {layer}, .* layers 1 to 2 only"):
        build(name, alignment_layer=layer)


@every_model
def test_guidance_without_label_dropout_is_refused(name: str) -> None:
    model = build(name, label_dropout=0.0)
    assert not model.supports_guidance
    with pytest.raises(ConfigError, match="no unconditional half"):
        draw(model, (0,), guidance=1.0)
    with pytest.raises(ConfigError, match=r"model.label_dropout is 0"):
        model.options.check(ModelContext(SHAPE, 5, guidance=1.0))


@pytest.mark.parametrize(("name", "num_steps"), [("sit", 0), ("dit", 0), ("dit", 1001)])
def test_number_of_steps_out_of_range_is_refused(name: str, num_steps: int) -> None:
    with pytest.raises(ValidationError, match="num_steps"):
        build(name, {"num_steps": num_steps})


@every_model
def test_shape_other_than_the_models_is_refused(name: str) -> None:
    with pytest.raises(ShapeError, match=r"\(1, 3, 8, 8\), but this model was built for \(B, 3, 4, 4\)"):
        build(name).sample(None, (1, 3, 8, 8), 0.0, IndexedRandom(0, (0,)))


@every_model
def test_patch_that_does_not_divide_the_grid_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="patch_size 3 does not divide the latent grid 4 x 4"):
        build(name, backbone={**BACKBONE, "patch_size": 3})


@every_model
def test_no_density_is_promised(name: str) -> None:
    with pytest.raises(NotImplementedError, match="no tractable density"):
        build(name).log_prob(torch.zeros(1, *SHAPE), None)
