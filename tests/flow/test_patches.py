"""Latents and tokens are the same numbers in another order."""

from __future__ import annotations

import pytest
import torch

from simflow_plugin.errors import ShapeError
from simflow_plugin.flow import patchify, unpatchify


@pytest.mark.parametrize("patch_size", [1, 2])
def test_unpatchify_undoes_patchify(patch_size: int) -> None:
    latents = torch.randn(2, 3, 4, 6)
    tokens = patchify(latents, patch_size)
    assert torch.equal(unpatchify(tokens, (4 // patch_size, 6 // patch_size), patch_size), latents)


def test_tokens_are_in_raster_order_and_channels_last() -> None:
    latents = torch.arange(2 * 4 * 4).view(1, 2, 4, 4)
    tokens = patchify(latents, 2)
    assert tokens[0, 1].tolist() == [2, 18, 3, 19, 6, 22, 7, 23]


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ShapeError, match=r"latents: found shape \(1, 2, 3, 4\)"):
        patchify(torch.zeros(1, 2, 3, 4), 2)
    with pytest.raises(ShapeError, match="tokens: found shape"):
        unpatchify(torch.zeros(1, 5, 4), (2, 2), 1)
