"""Embeddings of time, class and position for the diffusion transformer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simflow_plugin.contracts import NO_LABEL
from simflow_plugin.errors import ShapeError

MAX_PERIOD = 10_000.0


class TimeEmbedding(nn.Module):
    """Sinusoids of t at 128 frequencies, then a two-layer MLP.

    Of `num_waves`, an even number, the first half are cosines, the second sines.
    """

    def __init__(self, width: int, num_waves: int = 256) -> None:
        super().__init__()
        self.num_waves = num_waves
        self.mlp_in = nn.Linear(num_waves, width)
        self.mlp_out = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        """Embed t (B,), in whatever unit the model trains with; returns (B, width)."""
        half = self.num_waves // 2
        # float32 whatever the compute type: bfloat16 has 8 bits, too few to tell neighbouring times apart.
        frequencies = torch.exp(
            -math.log(MAX_PERIOD) / half * torch.arange(half, device=t.device, dtype=torch.float32)
        )
        angles = t.float()[:, None] * frequencies
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)  # (B, num_waves)
        return self.mlp_out(F.silu(self.mlp_in(waves.to(self.mlp_in.weight.dtype))))


class LabelEmbedding(nn.Module):
    """One vector per class, and one more for `NO_LABEL`, the last row."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.table = nn.Embedding(num_classes + 1, width)

    def forward(self, labels: Tensor) -> Tensor:
        """Embed labels (B,) int64 in [0, num_classes) or `NO_LABEL`; returns (B, width).

        Raises:
            ShapeError: for another label; checked on the CPU only, where it does not stall the device.
        """
        if labels.device.type == "cpu" and labels.numel():
            low, high = int(labels.min()), int(labels.max())
            if low < NO_LABEL or high >= self.num_classes:
                raise ShapeError(
                    f"labels range over [{low}, {high}], but this model knows [0, {self.num_classes}) and "
                    f"{NO_LABEL} for none. Check num_classes of the data set."
                )
        return self.table(torch.where(labels == NO_LABEL, self.num_classes, labels))


def sincos_positions(width: int, grid_size: tuple[int, int]) -> Tensor:
    """Return fixed 2-D sine-cosine positions (1, h * w, width), raster order, float32.

    The first half of the channels encodes the column, the second the row; each half is sines, then cosines.

    Args:
        width: divisible by 4.
        grid_size: (h, w) in tokens.
    """
    height, width_in_tokens = grid_size
    quarter = width // 4
    frequencies = MAX_PERIOD ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    rows, columns = torch.meshgrid(
        torch.arange(height, dtype=torch.float64),
        torch.arange(width_in_tokens, dtype=torch.float64),
        indexing="ij",
    )
    halves = [axis.reshape(-1, 1) * frequencies for axis in (columns, rows)]
    waves = [wave for angles in halves for wave in (angles.sin(), angles.cos())]
    return torch.cat(waves, dim=-1).float()[None]
