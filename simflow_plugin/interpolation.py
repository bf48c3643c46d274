"""Spherical interpolation of noise: the arc between two points, whose length stays that of typical noise."""

from __future__ import annotations

import torch
from torch import Tensor

NEARLY_PARALLEL = 1e-4
"""Radians. Below it, and this near to opposite, the arc is not told apart from the chord in float32."""


def slerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """Return sin((1 - t) w) / sin w * start + sin(t w) / sin w * end, w the angle between them, for each row.

    Args:
        start: (B, ...), noise.
        end: likewise.
        share: t in [0, 1]; 0 is `start`, 1 is `end`.
    Reference:
        Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985.
    """
    one, other = (point.flatten(1).double() for point in (start, end))
    angle = torch.acos(torch.cosine_similarity(one, other, dim=1).clamp(-1, 1))[:, None]
    sine = angle.sin()
    is_line = sine < NEARLY_PARALLEL
    safe = torch.where(is_line, torch.ones_like(sine), sine)
    of_start = torch.where(is_line, torch.full_like(sine, 1 - share), ((1 - share) * angle).sin() / safe)
    of_end = torch.where(is_line, torch.full_like(sine, share), (share * angle).sin() / safe)
    return (of_start * one + of_end * other).to(start.dtype).view_as(start)
