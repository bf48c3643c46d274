"""`cached`: one token after the other, each a single step over the KV cache."""

from __future__ import annotations

from simflow_plugin.flow.sampling.decode_steps import DecodeStep


def solve_cached(decode: DecodeStep, first: int, stop: int) -> None:
    """Fill in the targets of steps first : stop; the cache holds all earlier steps."""
    for step in range(first, stop):
        decode(step)
