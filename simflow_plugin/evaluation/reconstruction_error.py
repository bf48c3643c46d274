"""Similarity of reconstructions to their originals: PSNR, SSIM and LPIPS, one value an image.

    PSNR = 10 log10(L^2 / mean (x - y)^2), L the range of the values
    SSIM = mean over windows and channels of
           (2 m_x m_y + c1) (2 s_xy + c2) / ((m_x^2 + m_y^2 + c1) (s_x^2 + s_y^2 + c2))

Values are those of the published evaluations: images clamped to [-1, 1] and rounded to 256 levels first, as
a file would hold them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from simflow_plugin.errors import ShapeError

WINDOW, WINDOW_STD = 11, 1.5
"""SSIM's Gaussian window, Wang et al. 2004."""
C1, C2 = 0.01**2, 0.03**2
"""SSIM's constants for values in [0, 1]."""
MAX_PSNR = 100.0
"""PSNR of identical images; beyond any real value at 8 bits (one level in one pixel of a megapixel is 108
dB)."""


def psnr(images: Tensor, originals: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each image, (B,), float64, dB, at most 100.

    Args:
        images: (B, 3, H, W), [-1, 1], clamped and rounded to 8 bits here.
        originals: likewise.
    Raises:
        ShapeError: if the shapes differ.
    """
    _check(images, originals)
    error = (to_levels(images) - to_levels(originals)).square().flatten(1).mean(1)
    return (-10 * error.clamp(min=1e-30).log10()).clamp(max=MAX_PSNR)


def ssim(images: Tensor, originals: Tensor) -> Tensor:
    """Return the structural similarity of each image, (B,), float64, in [-1, 1].

    Gaussian window of 11 pixels and std 1.5, only windows that lie inside the image, population statistics,
    channels averaged. For images below 11 pixels the window is the largest odd number that fits.

    Args:
        images: (B, 3, H, W), [-1, 1], clamped and rounded to 8 bits here.
        originals: likewise.
    Raises:
        ShapeError: if the shapes differ.
    Reference:
        Wang et al., Image quality assessment: from error visibility to structural similarity, 2004.
    """
    _check(images, originals)
    x, y = to_levels(images), to_levels(originals)
    size = min(WINDOW, *(n - 1 + n % 2 for n in x.shape[2:]))
    mean_x, mean_y = _blur(x, size), _blur(y, size)
    var_x, var_y = _blur(x * x, size) - mean_x**2, _blur(y * y, size) - mean_y**2
    covariance = _blur(x * y, size) - mean_x * mean_y
    similarity = (2 * mean_x * mean_y + C1) * (2 * covariance + C2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + C1) * (var_x + var_y + C2))
    return similarity.flatten(1).mean(1)


class LPIPSDistance:
    """The LPIPS distance of each image with AlexNet, the backbone that papers report.

    Args:
        backbone_path: torchvision's weights of the backbone; None looks into torch's hub cache.
        device: to compute on.
    Raises:
        WeightsError: if the weights are missing, naming the file, the option and the address.
    """

    def __init__(self, backbone_path: str | None = None, device: torch.device | str = "cpu") -> None:
        from simflow_plugin.losses.lpips_loss import LPIPSLoss, LPIPSOptions

        self._network = LPIPSLoss(LPIPSOptions(net="alex", backbone_path=backbone_path)).to(device).network

    @torch.no_grad()
    def __call__(self, images: Tensor, originals: Tensor) -> Tensor:
        """Return (B,), float32, from images and originals (B, 3, H, W), [-1, 1].

        Raises:
            ShapeError: if the shapes differ.
        """
        _check(images, originals)
        # A metric, whatever precision the run computes in.
        with torch.autocast(images.device.type, enabled=False):
            return self._network(images.float().clamp(-1, 1), originals.float()).flatten()


def to_levels(images: Tensor) -> Tensor:
    """Round images in [-1, 1] to 256 levels in [0, 1], float64."""
    return ((images.double().clamp(-1, 1) + 1) * 127.5).round() / 255


def _blur(images: Tensor, size: int) -> Tensor:
    """Average windows of `size` pixels by Gaussian weights, row by row and column by column."""
    offsets = torch.arange(size, dtype=images.dtype, device=images.device) - (size - 1) / 2
    weights = torch.exp(-0.5 * (offsets / WINDOW_STD) ** 2)
    weights = weights / weights.sum()
    channels = images.shape[1]
    rows = F.conv2d(images, weights.view(1, 1, size, 1).expand(channels, 1, size, 1), groups=channels)
    return F.conv2d(rows, weights.view(1, 1, 1, size).expand(channels, 1, 1, size), groups=channels)


def _check(images: Tensor, originals: Tensor) -> None:
    if images.shape != originals.shape or images.ndim != 4:
        raise ShapeError(
            f"images {tuple(images.shape)} and originals {tuple(originals.shape)} must have one shape "
            "(B, 3, H, W)"
        )
