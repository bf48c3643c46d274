"""The alignment head of a generative model: projected hidden tokens against a frozen encoder's features.

    L = -1 / (B T) sum_{b, t} <p_bt, f_bt> / (|p_bt| |f_bt|), in [-1, 1]

Reference: REPA, arXiv:2410.06940, equation 8.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simflow_plugin.contracts import AlignmentContext
from simflow_plugin.errors import ShapeError

Grid = tuple[int, int]


class Projector(nn.Module):
    """Three linear layers with SiLU between them.

    Args:
        hidden_dim: W, width of the model's hidden tokens.
        projector_dim: width of the two layers inside.
        feature_dim: F, channels of the encoder's features.
    Reference:
        REPA, arXiv:2410.06940, section 3.
    """

    def __init__(self, hidden_dim: int, projector_dim: int, feature_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(hidden_dim, projector_dim),
            nn.SiLU(),
            nn.Linear(projector_dim, projector_dim),
            nn.SiLU(),
            nn.Linear(projector_dim, feature_dim),
        )

    def forward(self, hidden_tokens: Tensor) -> Tensor:
        """Map (B, T, W) to (B, T, F)."""
        return self.layers(hidden_tokens)


class AlignmentHead(nn.Module):
    """Projected hidden tokens against a frozen encoder's features.

    Args:
        hidden_dim: W, width of the hidden tokens.
        context: the features' channels and the projector's width; the model chooses the layer.
    """

    def __init__(self, hidden_dim: int, context: AlignmentContext) -> None:
        super().__init__()
        self.projector = Projector(hidden_dim, context.projector_dim, context.feature_dim)

    def forward(self, hidden_tokens: Tensor, hidden_grid: Grid, features: Tensor) -> Tensor:
        """Return `alignment_loss` of the projected hidden tokens (B, T, W), in raster order over `hidden_grid`."""
        return alignment_loss(self.projector(hidden_tokens), hidden_grid, features)


def negative_cosine(projected: Tensor, features: Tensor) -> Tensor:
    """Return the mean negative cosine similarity of two token grids, a float32 scalar in [-1, 1].

    Args:
        projected: (B, T, F).
        features: (B, T, F).
    Raises:
        ShapeError: if the shapes differ.
    """
    if projected.shape != features.shape:
        raise ShapeError(
            f"features {tuple(features.shape)} do not match projected tokens {tuple(projected.shape)}"
        )
    # Under autocast the norms of bfloat16 tokens would lose three digits.
    # The meta device, on which compute is counted, has no autocast of its own.
    with torch.autocast("cpu" if projected.is_meta else projected.device.type, enabled=False):
        return -F.cosine_similarity(projected.float(), features.float(), dim=-1).mean()


def resample_tokens(features: Tensor, from_grid: Grid, to_grid: Grid) -> Tensor:
    """Bring tokens (B, h w, F) in raster order onto another grid: (B, h' w', F).

    Bilinear and antialiased, so that every feature contributes where the grid shrinks.

    Raises:
        ShapeError: if the number of tokens is not that of `from_grid`.
    """
    if features.shape[1] != from_grid[0] * from_grid[1]:
        raise ShapeError(f"{features.shape[1]} tokens do not fill a grid of {from_grid[0]} x {from_grid[1]}")
    if from_grid == to_grid:
        return features
    maps = features.transpose(1, 2).unflatten(2, from_grid)  # (B, F, h, w)
    resampled = F.interpolate(maps.float(), to_grid, mode="bilinear", antialias=True, align_corners=False)
    return resampled.flatten(2).transpose(1, 2).to(features.dtype)


def square_grid(num_tokens: int) -> Grid:
    """Return (n, n) for n * n tokens: encoders here see square images.

    Raises:
        ShapeError: if the number is not a square.
    """
    side = round(num_tokens**0.5)
    if side * side != num_tokens:
        raise ShapeError(f"{num_tokens} features are not a square grid. Were prefix tokens left in?")
    return side, side


def alignment_loss(projected: Tensor, grid: Grid, features: Tensor) -> Tensor:
    """Return the mean negative cosine similarity of projected tokens and features, a scalar in [-1, 1].

    Args:
        projected: (B, T, F), raster order over `grid`.
        grid: (rows, columns), T of them.
        features: (B, N, F), raster order over a square grid; resampled to `grid`.
    Raises:
        ShapeError: if tokens or features do not fill their grids.
    """
    return negative_cosine(projected, resample_tokens(features, square_grid(features.shape[1]), grid))
