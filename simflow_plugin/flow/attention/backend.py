"""Contract of attention backends: causal attention of the last n queries over S positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class AttentionContext:
    """Context of an attention backend; `key_heads` divides `query_heads`."""

    head_dim: int
    query_heads: int = 1
    key_heads: int = 1


class AttentionBackend(Protocol):
    """Stateless causal attention, used by training and by sampling alike."""

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend; query i of n sees keys 0 .. S - n + i.

        Args:
            queries: (B, H, n, d), the last n of S positions.
            keys: (B, G, S, d), rotated; G divides H (grouped queries), n <= S.
            values: (B, G, S, d).
        Returns:
            (B, H, n, d).
        """
        ...
