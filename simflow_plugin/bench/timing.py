"""Timing on a shared machine: subjects alternate, medians are reported, devices are synchronised."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from simflow_plugin.bench.setting import BenchSetting


@dataclass
class Subject:
    """Something to time.

    Args:
        run: the work; what it returns is kept from the last round.
        flops: the least arithmetic of one run.
        guidance: weight of a guided sampling run, 0 of any other.
        needs_warmup: run it once, untimed, before the rounds.
        seconds: of each round.
    """

    name: str
    run: Callable[[], Any]
    flops: int
    guidance: float = 0.0
    needs_warmup: bool = False
    seconds: list[float] = field(default_factory=list)
    result: Any = None

    @property
    def median(self) -> float:
        """Median of the rounds, in seconds."""
        return statistics.median(self.seconds)


def time_in_turn(subjects: Sequence[Subject], setting: BenchSetting, advance: Callable[[int], None]) -> None:
    """Time every subject once a round, so that a busy minute of the machine falls on all of them.

    Args:
        subjects: filled in.
        setting: its rounds, its clock, and its device, which is waited for around every run; a GPU, which has kernels
            to load, runs everything once before.
        advance: called with 1 after every run.
    """
    for subject in subjects:
        if subject.needs_warmup or setting.device.type == "cuda":
            subject.run()
    for _ in range(setting.rounds):
        for subject in subjects:
            begin = _now(setting)
            subject.result = subject.run()
            subject.seconds.append(_now(setting) - begin)
            advance(1)


def peak_memory(run: Callable[[], Any], device: torch.device) -> int:
    """Return how many bytes of tensors `run` adds at its peak, by the count of torch's allocator."""
    run()  # what is allocated once (optimiser state, gradients) is not the peak's
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler complains on machines without a GPU
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        run()
    results = profile.profiler.kineto_results  # type: ignore[union-attr]
    events = [event for event in results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def _now(setting: BenchSetting) -> float:
    if setting.device.type == "cuda":
        torch.cuda.synchronize(setting.device)
    return time.process_time() if setting.clock == "cpu" else time.perf_counter()
