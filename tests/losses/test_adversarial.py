"""The adversarial loss: closed forms of each term, and who receives whose gradients."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from simflow_plugin.contracts import DataContext
from simflow_plugin.errors import ShapeError
from simflow_plugin.losses.adversarial import (
    AdversarialLoss,
    AdversarialOptions,
    adaptive_weight,
    hinge_loss,
    r1_penalty,
)


def build(**options) -> AdversarialLoss:
    torch.manual_seed(0)
    return AdversarialLoss(AdversarialOptions.model_validate({"width": 4, "num_layers": 1, **options}))


def pair(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(4, 3, 16, 16, generator=generator) * 2 - 1
    decoder = nn.Conv2d(3, 3, 1)
    return decoder(images.flip(0)), images, decoder.weight


class Linear(nn.Module):
    """A discriminator whose logits are a known linear function: <weight, image>."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, images):
        return (images * self.weight).flatten(1).sum(1)[:, None, None, None]


class Scores(nn.Module):
    """A discriminator that returns the images' mean: the logits are what the test says."""

    def forward(self, images):
        return images.mean((1, 2, 3), keepdim=True)


def test_hinge_loss_has_its_closed_form():
    loss = hinge_loss(torch.tensor([0.5, 3.0]), torch.tensor([-0.5, -3.0]))
    assert loss.item() == pytest.approx(0.5 * (0.25 + 0.25))


def test_generator_term_is_the_negative_mean_logit():
    reconstruction, _, layer = pair()
    adversary = build(uses_adaptive_weight=False, weight=0.3)
    terms = adversary.generator_terms(reconstruction, reconstruction.sum(), layer)
    torch.testing.assert_close(terms["adversarial"], -0.3 * adversary.discriminator(reconstruction).mean())


@pytest.mark.parametrize("loss_scale", [None, torch.tensor(1024.0)])
def test_adaptive_weight_is_the_ratio_of_gradient_norms_at_any_loss_scale(loss_scale):
    layer = nn.Parameter(torch.ones(2))
    losses = (torch.tensor([3.0, 4.0]) * layer).sum(), (torch.tensor([0.0, 2.0]) * layer).sum()
    weight = adaptive_weight(*losses, layer, loss_scale)
    assert weight.item() == pytest.approx(5 / (2 + 1e-4))
    assert not weight.requires_grad


def test_adaptive_weight_is_clamped():
    layer = nn.Parameter(torch.ones(2))
    assert adaptive_weight(1e6 * layer.sum(), 0 * layer.sum(), layer).item() == 1e4


def test_adaptive_weight_balances_the_two_gradients():
    reconstruction, images, layer = pair()
    loss = (reconstruction - images).square().mean()
    terms = build(weight=0.5).generator_terms(reconstruction, loss, layer)
    norms = [
        torch.autograd.grad(term, layer, retain_graph=True)[0].norm() for term in (loss, terms["adversarial"])
    ]
    assert (norms[1] / norms[0]).item() == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("norm", ["batch", "spectral", "none"])
def test_generator_term_leaves_the_discriminator_without_gradients(norm):
    reconstruction, _, layer = pair()
    adversary = build(norm=norm)
    adversary.generator_terms(reconstruction, reconstruction.square().mean(), layer)["adversarial"].backward()
    assert layer.grad is not None
    assert all(parameter.grad is None for parameter in adversary.parameters())


@pytest.mark.parametrize("options", [{}, {"norm": "spectral"}, {"r1_weight": 1.0, "lecam_weight": 0.1}])
def test_discriminator_loss_reaches_every_weight_and_not_the_decoder(options):
    reconstruction, images, layer = pair()
    adversary = build(**options)
    adversary(reconstruction, images)["discriminator"].backward()
    assert layer.grad is None
    assert all(parameter.grad is not None for parameter in adversary.parameters())


def test_discriminator_learns_to_tell_the_two_apart():
    reconstruction, images, _ = pair()
    adversary = build(learning_rate=1e-2)
    optimizer = adversary.make_optimizer()
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        terms = adversary(reconstruction.detach() * 0.3, images)
        terms["discriminator"].backward()
        optimizer.step()
        losses.append(terms["discriminator"].item())
    assert losses[-1] < 0.5 * losses[0]


def test_r1_is_half_the_squared_gradient_of_a_linear_discriminator():
    weight = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    discriminator = Linear(weight)
    images = torch.randn(5, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    penalty = r1_penalty(discriminator(images), images)
    penalty.backward()
    assert penalty.item() == pytest.approx(0.5 * weight.square().sum().item(), rel=1e-6)
    torch.testing.assert_close(discriminator.weight.grad, weight, rtol=1e-6, atol=1e-6)


def test_regularisation_is_off_by_default():
    reconstruction, images, _ = pair()
    adversary = build()
    assert not {"r1", "lecam"} & set(adversary(reconstruction, images))
    assert not [name for name in adversary.state_dict() if "lecam" in name]


def lecam_adversary(decay: float) -> AdversarialLoss:
    adversary = build(lecam_weight=1.0, lecam_decay=decay)
    adversary.discriminator = Scores()
    return adversary


def constant(value: float) -> torch.Tensor:
    return torch.full((2, 3, 4, 4), value)


def test_lecam_pulls_towards_the_bias_corrected_averages():
    adversary = lecam_adversary(0.9)
    for real, fake in ((2.0, -1.0), (4.0, -3.0)):
        adversary(constant(fake), constant(real))
    a_real, a_fake = ((0.9 * a + b) / 1.9 for a, b in ((2.0, 4.0), (-1.0, -3.0)))
    expected = (1.0 - a_fake) ** 2 + (a_real - 0.5) ** 2
    assert adversary(constant(0.5), constant(1.0))["lecam"].item() == pytest.approx(expected, rel=1e-5)


def test_lecam_averages_forget_a_step_that_is_not_finite():
    adversary, other = lecam_adversary(0.9), lecam_adversary(0.9)
    adversary(constant(-1.0), constant(2.0))
    other(constant(-1.0), constant(2.0))
    adversary(constant(float("nan")), constant(2.0))
    assert torch.equal(
        adversary(constant(-3.0), constant(4.0))["lecam"], other(constant(-3.0), constant(4.0))["lecam"]
    )


def test_lecam_starts_from_zero():
    assert lecam_adversary(0.9)(constant(-1.0), constant(2.0))["lecam"].item() == pytest.approx(4.0 + 1.0)


def test_lecam_averages_survive_a_checkpoint():
    adversary, restored = build(lecam_weight=1.0), build(lecam_weight=1.0)
    reconstruction, images, _ = pair()
    adversary(reconstruction, images)
    restored.load_state_dict(adversary.state_dict())
    assert torch.equal(restored(reconstruction, images)["lecam"], adversary(reconstruction, images)["lecam"])


def test_adversary_starts_at_its_step():
    adversary = build(start_step=5)
    assert [adversary.is_active(step) for step in (4, 5, 6)] == [False, True, True]


def test_small_image_size_is_refused_when_built():
    with pytest.raises(ShapeError, match="lower num_layers"):
        AdversarialLoss(AdversarialOptions(num_layers=3), DataContext(16, "train"))


@pytest.mark.parametrize("options", [{"lecam_decay": 1.0}, {"weight": -1}, {"norm": "actnorm"}, {"r1": 1.0}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValidationError):
        AdversarialOptions.model_validate(options)
