"""Processors that this process may use."""

from __future__ import annotations

import os


def num_usable_processors() -> int:
    """Return how many processors this process may use: fewer than there are in a job of a cluster, or under taskset."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
