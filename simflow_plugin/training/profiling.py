"""`--profile N`: N steps of the loop as a Chrome trace, for chrome://tracing or ui.perfetto.dev."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, schedule, supported_activities

WARMUP_STEPS = 2
"""Steps before the recorded ones: the first ones choose kernels and fill allocators."""


@contextmanager
def profiled(num_steps: int, path: Path) -> Iterator[Callable[[], None]]:
    """Record `num_steps` steps after a warm-up of 2; the value is to be called after every step.

    Args:
        num_steps: 0 records nothing.
        path: of the trace (.json); written when the last recorded step is done.
    """
    if num_steps == 0:
        yield lambda: None
        return
    activities = {ProfilerActivity.CPU, ProfilerActivity.CUDA} & supported_activities()
    plan = schedule(wait=0, warmup=WARMUP_STEPS, active=num_steps, repeat=1)
    with profile(
        activities=activities,
        schedule=plan,
        on_trace_ready=lambda recorded: recorded.export_chrome_trace(str(path)),
    ) as profiler:
        yield profiler.step
