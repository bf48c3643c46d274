"""The adaLN-zero transformer: published sizes, start at zero, patches, checkpointing."""

import pytest
import torch
from pydantic import ValidationError

from simflow_plugin.diffusion.options import PUBLISHED_SIZES, BackboneOptions
from simflow_plugin.diffusion.transformer import AdaLNTransformer

PUBLISHED_MILLIONS = {"S": 33, "B": 130, "L": 458, "XL": 675}
"""DiT, arXiv:2212.09748, table 1, and SiT, arXiv:2401.08740, table 1; at patch 2."""


def small(**overrides: object) -> AdaLNTransformer:
    options = BackboneOptions.model_validate({"width": 16, "depth": 2, "num_heads": 2, **overrides})
    torch.manual_seed(0)
    model = AdaLNTransformer(options, (3, 4, 8), num_classes=5)
    for parameter in model.parameters():  # away from the start at zero
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def count(size: str, patch_size: int, num_classes: int = 1000) -> int:
    options = BackboneOptions.model_validate({"size": size, "patch_size": patch_size})
    with torch.device("meta"):
        model = AdaLNTransformer(options, (4, 32, 32), num_classes)
    # Published counts include the fixed positions.
    return sum(p.numel() for p in model.parameters()) + model.positions.numel()


def test_xl_2_has_675_111_184_parameters() -> None:
    assert count("XL", 2) == 675_111_184


@pytest.mark.parametrize("size", PUBLISHED_SIZES)
def test_parameter_count_is_the_published_one(size: str) -> None:
    # The tables round some sizes up and some down: B/2 has 130,500,112.
    assert abs(count(size, 2) / 1e6 - PUBLISHED_MILLIONS[size]) < 0.51


@pytest.mark.parametrize("patch_size", [1, 2, 4])
@pytest.mark.parametrize("size", PUBLISHED_SIZES)
def test_parameter_count_follows_from_the_architecture(size: str, patch_size: int) -> None:
    width, depth, _ = PUBLISHED_SIZES[size]
    tokens, patch = (32 // patch_size) ** 2, 4 * patch_size**2
    layer = 18 * width**2 + 15 * width  # qkv, out, mlp, six modulations, biases
    embeddings = width * (256 + 1) + width * (width + 1) + 1001 * width + tokens * width + width * (patch + 1)
    head = 2 * width * (width + 1) + patch * (width + 1)
    assert count(size, patch_size) == depth * layer + embeddings + head


def test_new_network_predicts_zero() -> None:
    model = AdaLNTransformer(BackboneOptions(width=16, depth=2, num_heads=2), (3, 4, 8), num_classes=5)
    assert model(torch.randn(2, 3, 4, 8), torch.rand(2), torch.tensor([0, 1])).prediction.abs().max() == 0


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_prediction_of_a_patch_lands_on_that_patch(patch_size: int) -> None:
    model = small(patch_size=patch_size)
    grid = torch.arange(3 * 4 * 8).view(1, 3, 4, 8).float()
    patches = torch.nn.functional.unfold(grid, patch_size, stride=patch_size)  # (1, C * p * p, T)
    tokens = patches.unflatten(1, (3, patch_size**2)).permute(0, 3, 2, 1).flatten(2)
    torch.testing.assert_close(model._unpatchify(tokens), grid)


def test_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for uses_activation_checkpointing in (False, True):
        model = small(uses_activation_checkpointing=uses_activation_checkpointing)
        latents = torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(1))
        model(latents, torch.tensor([0.1, 0.9]), None).prediction.square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5 * float(gradients[0].abs().max()))


@pytest.mark.parametrize("uses_qk_norm", [False, True])
def test_every_parameter_gets_a_gradient(uses_qk_norm: bool) -> None:
    model = small(uses_qk_norm=uses_qk_norm)
    model(torch.randn(2, 3, 4, 8), torch.rand(2), torch.tensor([0, -1])).prediction.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_hidden_tokens_are_those_after_the_layer() -> None:
    model, hooked = small(), []
    model.layers[0].register_forward_hook(lambda module, inputs, tokens: hooked.append(tokens))
    hidden = model(torch.randn(2, 3, 4, 8), torch.rand(2), None, hidden_layer=1).hidden
    assert hidden.shape == (2, 8, 16)
    assert torch.equal(hidden, hooked[0])


def test_unconditional_network_has_no_label_table() -> None:
    model = AdaLNTransformer(BackboneOptions(width=16, depth=1, num_heads=2), (3, 4, 8), num_classes=None)
    assert model.label_embed is None
    assert model(torch.randn(2, 3, 4, 8), torch.rand(2), None).prediction.shape == (2, 3, 4, 8)


def test_missing_labels_are_no_label() -> None:
    model = small()
    latents, t = torch.randn(2, 3, 4, 8), torch.rand(2)
    torch.testing.assert_close(
        model(latents, t, None).prediction, model(latents, t, torch.tensor([-1, -1])).prediction
    )


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValidationError, match="width 16 must be divisible by num_heads 3"):
        BackboneOptions.model_validate({"width": 16, "num_heads": 3})
