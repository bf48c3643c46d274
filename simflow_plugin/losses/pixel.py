"""Pixel losses: mean absolute and mean squared difference.

With images in [-1, 1], `l2` is 4 times the squared error in [0, 1]. A Gaussian decoder of standard
deviation s has -log p(x|z) = l2 * dims / (2 s^2) + const.
"""

from __future__ import annotations

from torch import Tensor, nn

from simflow_plugin.contracts import DataContext
from simflow_plugin.losses.options import PixelOptions
from simflow_plugin.registry import RECONSTRUCTION_LOSSES


class PixelLoss(nn.Module):
    """Base: a mean over all pixels and channels, in float32 whatever the compute type."""

    Options = PixelOptions

    def __init__(self, options: PixelOptions, context: DataContext | None = None) -> None:
        super().__init__()

    @staticmethod
    def outline(options: PixelOptions, context: DataContext) -> None:
        """Return None: a pixel loss has no network."""


@RECONSTRUCTION_LOSSES.register("l1")
class L1Loss(PixelLoss):
    """mean |reconstruction - images|."""

    def forward(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """Return a float32 scalar, for (B, 3, H, W) images in [-1, 1]."""
        return nn.functional.l1_loss(reconstruction.float(), images.float())


@RECONSTRUCTION_LOSSES.register("l2")
class L2Loss(PixelLoss):
    """mean (reconstruction - images)^2."""

    def forward(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """Return a float32 scalar, for (B, 3, H, W) images in [-1, 1]."""
        return nn.functional.mse_loss(reconstruction.float(), images.float())
