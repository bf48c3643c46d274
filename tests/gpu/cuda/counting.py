"""Counts of what reaches a CUDA device: by the null device's own counters, else by torch's profiler."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import pytest
import torch

_PROCESS = ctypes.CDLL(None)
IS_NULL = hasattr(_PROCESS, "null_launches")
"""True on the null device: numbers mean nothing, and everything is counted."""


def read_no_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing read, on the null device, what no kernel wrote; cuDNN, which is not stood in for, is off."""
    for name in ("check_tokens", "check_labels", "check_condition"):
        monkeypatch.setattr(f"simflow_plugin.flow.flow.{name}", lambda *arguments: None)
    monkeypatch.setattr("simflow_plugin.training.stability.BadSteps.check", lambda *arguments: None)
    monkeypatch.setattr(torch.backends.cudnn, "enabled", False)
    torch.backends.cuda.enable_cudnn_sdp(False)


@dataclass
class Counts:
    """What happened within a `counted` block; `operations` is what the host put on a stream one by one."""

    launches: int = 0
    blas: int = 0
    copies: int = 0
    memsets: int = 0
    graph_launches: int = 0
    waits: int = 0
    to_device: int = 0
    unpinned: int = 0
    to_host: int = 0
    outside_capture: int = 0
    allocations: int = 0

    @property
    def operations(self) -> int:
        return self.launches + self.blas + self.copies + self.memsets


@contextmanager
def counted() -> Iterator[Counts]:
    """Fill in the counts when the block ends; on a real GPU those of launches, copies and graphs only."""
    counts = Counts()
    if IS_NULL:
        before = {name: _read(name) for name in asdict(counts)}
        yield counts
        for name, value in before.items():
            setattr(counts, name, _read(name) - value)
        return
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        yield counts
        torch.cuda.synchronize()
    calls = {event.key: event.count for event in profile.key_averages()}
    counts.launches = sum(
        calls.get(name, 0) for name in ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel")
    )
    counts.copies = calls.get("cudaMemcpyAsync", 0)
    counts.memsets = calls.get("cudaMemsetAsync", 0)
    counts.graph_launches = calls.get("cudaGraphLaunch", 0)


def _read(name: str) -> int:
    return ctypes.c_long.in_dll(_PROCESS, f"null_{name}").value
