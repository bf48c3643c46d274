"""The alignment head of a generative model: a projector and the loss, on one of its hidden layers."""

from __future__ import annotations

from torch import Tensor, nn

from simflow_plugin.alignment.loss import Grid, alignment_loss
from simflow_plugin.alignment.projector import Projector
from simflow_plugin.contracts import AlignmentContext


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
        """Return the alignment loss, a scalar in [-1, 1].

        Args:
            hidden_tokens: (B, T, W), raster order over `hidden_grid`.
            hidden_grid: (rows, columns), T of them.
            features: (B, N, F), raster order over a square grid; resampled to `hidden_grid`.
        Raises:
            ShapeError: if tokens or features do not fill their grids.
        """
        return alignment_loss(self.projector(hidden_tokens), hidden_grid, features)
