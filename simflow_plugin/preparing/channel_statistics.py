"""Mean and standard deviation by channel of latents in many files, from sums of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from simflow_plugin.errors import DataError


@dataclass(frozen=True)
class ChannelStatistics:
    """Of all latents: `mean` and `std` (1, C, 1, 1) float32; the variance has n - 1 in its denominator."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(
        cls, sums: Sequence[Sequence[float]], squares: Sequence[Sequence[float]], count: int
    ) -> ChannelStatistics:
        """Return the statistics.

        Args:
            sums, squares: by file and channel.
            count: numbers of a channel, over all images and positions.
        Raises:
            DataError: for fewer than two.
        """
        if count < 2:
            raise DataError(f"{count} numbers a channel: there are no latents to measure.")
        total, square = (torch.tensor(parts, dtype=torch.float64).sum(0) for parts in (sums, squares))
        mean = total / count
        variance = ((square - count * mean.square()) / (count - 1)).clamp(min=0)
        return cls(mean.float()[None, :, None, None], variance.sqrt().float()[None, :, None, None])
