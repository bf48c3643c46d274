"""Pixel losses: closed forms, over every registered loss that needs no file."""

import pytest
import torch

from simflow_plugin.registry import RECONSTRUCTION_LOSSES

NAMES = ["l1", "l2"]


def build(name: str):
    factory = RECONSTRUCTION_LOSSES.get(name)
    return factory(factory.Options(), None)


@pytest.mark.parametrize(("name", "expected"), [("l1", 0.5), ("l2", 0.25)])
def test_constant_difference_has_its_closed_form(name, expected):
    images = torch.zeros(2, 3, 4, 4)
    assert build(name)(images + 0.5, images).item() == expected


@pytest.mark.parametrize("name", NAMES)
def test_equal_images_have_no_loss(name):
    images = torch.rand(2, 3, 4, 4)
    assert build(name)(images, images).item() == 0


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_measured_in_float32(name):
    loss = build(name)(torch.ones(1, 3, 2, 2, dtype=torch.bfloat16), torch.zeros(1, 3, 2, 2))
    assert (loss.dtype, loss.shape) == (torch.float32, ())


def test_l2_gradient_is_that_of_a_gaussian_decoder():
    images, std = torch.rand(2, 3, 4, 4, dtype=torch.float32), 0.3
    reconstruction = torch.rand(2, 3, 4, 4, requires_grad=True)
    dims = images[0].numel()
    nll = -torch.distributions.Normal(reconstruction, std).log_prob(images).flatten(1).sum(1).mean()
    (expected,) = torch.autograd.grad(nll, reconstruction)
    weighted = build("l2")(reconstruction, images) * dims / (2 * std**2)
    (gradient,) = torch.autograd.grad(weighted, reconstruction)
    torch.testing.assert_close(gradient, expected)
