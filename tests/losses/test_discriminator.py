"""The PatchGAN sees patches of the published size, and refuses images without one."""

import pytest
import torch

from simflow_plugin.errors import ShapeError
from simflow_plugin.losses.discriminator import PatchDiscriminator, check_image_size

NORMS = ["batch", "spectral", "none"]


@pytest.mark.parametrize(("num_layers", "side"), [(1, 16), (2, 34), (3, 70)])
def test_logit_sees_a_patch_of_the_published_size(num_layers, side):
    discriminator = PatchDiscriminator(4, num_layers, "none").double()
    images = torch.zeros(1, 3, 96, 96, dtype=torch.float64, requires_grad=True)
    logits = discriminator(images)
    middle = logits.shape[-1] // 2
    (gradient,) = torch.autograd.grad(logits[0, 0, middle, middle], images)
    rows = gradient.abs().sum((0, 1, 3)).nonzero()
    assert (rows.max() - rows.min() + 1).item() == side


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_smallest_image_that_passes_the_check_has_one_logit(num_layers, norm):
    size = 2**num_layers
    while True:
        try:
            check_image_size(size, num_layers)
            break
        except ShapeError:
            size += 1
    assert PatchDiscriminator(4, num_layers, norm)(torch.randn(2, 3, size, size)).shape == (2, 1, 1, 1)


def test_image_smaller_than_a_patch_is_refused():
    with pytest.raises(ShapeError, match="3 strided layers leave no patch of a 16-pixel image"):
        PatchDiscriminator(4, 3, "batch")(torch.zeros(2, 3, 16, 16))


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_forward_changes_no_state(norm):
    discriminator = PatchDiscriminator(4, 1, norm)
    before = {name: value.clone() for name, value in discriminator.state_dict().items()}
    discriminator(torch.randn(2, 3, 16, 16))
    assert all(torch.equal(value, before[name]) for name, value in discriminator.state_dict().items())


def test_spectral_norm_bounds_each_layer():
    discriminator = PatchDiscriminator(4, 2, "spectral")
    for _ in range(50):
        discriminator(torch.randn(1, 3, 32, 32))
    for layer in discriminator.layers:
        if isinstance(layer, torch.nn.Conv2d):
            assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.05)
