"""The projector of REPA: hidden tokens of the generative model -> the space of the encoder's features."""

from __future__ import annotations

from torch import Tensor, nn


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
