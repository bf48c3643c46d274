"""Sequential passes of an inversion, as far as its methods fix them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from simflow_plugin.flow.sampling.methods import Auto, Jacobi, Method

if TYPE_CHECKING:
    from simflow_plugin.flow.flow import TransformerFlow


def sequential_passes(flow: TransformerFlow, methods: Sequence[Method]) -> int | None:
    """Return the passes of one batch: one a token and block; None where a method iterates until it converges.

    An output shift leaves the first token of a block as it is.
    """
    if any(isinstance(method, Jacobi | Auto) for method in methods):
        return None
    return sum(flow.config.num_tokens - block.lag for block in (*flow.shallow_blocks, flow.deep_block))
