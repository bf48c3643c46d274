"""Latents (B, C, H, W) <-> tokens (B, T, D): T in raster order, D as (row, column, channel) of a patch."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor

from simflow_plugin.errors import ShapeError


def patchify(latents: Tensor, patch_size: int) -> Tensor:
    """Cut latents (B, C, H, W) into tokens (B, H W / p^2, p^2 C).

    Raises:
        ShapeError: if `latents` is not 4-dimensional or p does not divide H and W.
    """
    if latents.dim() != 4 or latents.shape[-1] % patch_size or latents.shape[-2] % patch_size:
        raise ShapeError(
            f"latents: found shape {tuple(latents.shape)}, expected (B, C, H, W) with H and W multiples of "
            f"the patch size {patch_size}"
        )
    return rearrange(latents, "b c (h p) (w q) -> b (h w) (p q c)", p=patch_size, q=patch_size)


def unpatchify(tokens: Tensor, grid_size: tuple[int, int], patch_size: int) -> Tensor:
    """Undo `patchify`: tokens (B, h w, p^2 C) of a grid of (h, w) tokens -> latents (B, C, h p, w p).

    Raises:
        ShapeError: if the tokens do not fill the grid or D is not a multiple of p^2.
    """
    height, width = grid_size
    if tokens.dim() != 3 or tokens.shape[1] != height * width or tokens.shape[2] % patch_size**2:
        raise ShapeError(
            f"tokens: found shape {tuple(tokens.shape)}, expected (B, {height * width}, D) with D a multiple "
            f"of {patch_size**2}"
        )
    return rearrange(
        tokens, "b (h w) (p q c) -> b c (h p) (w q)", h=height, w=width, p=patch_size, q=patch_size
    ).contiguous()
