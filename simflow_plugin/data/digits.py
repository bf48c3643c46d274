"""scikit-learn's handwritten digits: 1,797 images of 8x8, inside a package that is installed anyway."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from simflow_plugin import registry
from simflow_plugin.contracts import DataContext
from simflow_plugin.data.in_memory import InMemoryDataset
from simflow_plugin.data.options import DigitsFacts, DigitsOptions
from simflow_plugin.data.split import split_indices
from simflow_plugin.errors import DataError

RAW_SIZE = 8
RAW_MAX = 16.0
CORRECTION_STEPS = 8


@registry.DATASETS.register("digits")
class Digits(InMemoryDataset, DigitsFacts):
    """Digits resized to `image_size` so that averaging them back to 8x8 recovers the original.

    Attributes:
        raw_images: (N, 8, 8) float64 array, [0, 16], the originals, for a judge that never sees our resizing.
        labels: (N,) int64 tensor.
    Raises:
        DataError: if `image_size` is below 8.
    """

    raw_images: np.ndarray

    def __init__(self, options: DigitsOptions, context: DataContext) -> None:
        from sklearn.datasets import load_digits

        if context.image_size < RAW_SIZE:
            raise DataError(
                f"digits: image_size {context.image_size} is below the original {RAW_SIZE}. Use 8 or more."
            )
        raw, labels = load_digits(return_X_y=True)
        targets = torch.from_numpy(labels).to(torch.int64)
        rows = split_indices(targets, context.split, options.test_share, options.split_seed)
        self.raw_images = raw.reshape(-1, RAW_SIZE, RAW_SIZE)[rows.numpy()]
        images = enlarge(torch.from_numpy(self.raw_images), context.image_size)
        super().__init__(images, targets[rows], [str(digit) for digit in range(10)], "digits")

    def read_content(self, index: int) -> bytes:
        """Return the original's bytes: resizing may round otherwise on another machine."""
        return self.raw_images[index].tobytes()


def enlarge(raw: Tensor, size: int) -> Tensor:
    """Resize raw digits to smooth images whose area average is the raw digit again.

    Bicubic interpolation alone blurs under the average; a few steps of back-projection (add the enlarged
    residual) undo that within the limits of [0, 255].

    Args:
        raw: (N, 8, 8), [0, 16].
        size: in pixels, at least 8.
    Returns:
        (N, 1, size, size), uint8.
    """
    target = raw.float()[:, None] / RAW_MAX

    def up(values: Tensor) -> Tensor:
        return F.interpolate(values, (size, size), mode="bicubic", align_corners=False)

    images = up(target).clamp_(0, 1)
    for _ in range(CORRECTION_STEPS):
        residual = target - F.adaptive_avg_pool2d(images, RAW_SIZE)
        images = (images + up(residual)).clamp_(0, 1)
    return (images * 255).round_().to(torch.uint8)
