"""Benchmark setting: the flow, the batch, the device, the samplers, the number of rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from simflow_plugin.flow import FlowConfig

NAIVE_TOKENS = 64
"""Up to this many tokens `naive` is run without being asked for: its time grows with the square of the length."""


@dataclass(frozen=True)
class BenchSetting:
    """Benchmark setting.

    Args:
        config: of the flow, with labels or with a condition of one token.
        guidance: weight w > 0 of the guided runs.
        clock: `wall`, or `cpu` for the CPU time of this process: steadier on a CPU that others use as well, above all
            with one thread.
        rounds: every subject is timed once a round, in turn; medians are reported.
        methods: sampling methods, as `TransformerFlow.inverse` takes them; `cached` is always run.
        autocast: compute type, or None for float32 throughout.
        runs_naive: whether to run the `naive` oracle; None: with `NAIVE_TOKENS` tokens at most.
        log_scale_std: spread of the log-scales over tokens and channels, which sets how far every block is from the
            identity; Jacobi iterations depend on it.
        seed: of weights and data.
        gemm_size: side of the square matrices.
        peer: a checkout of apple/ml-starflow to run beside, or None.
    """

    config: FlowConfig
    batch_size: int = 8
    guidance: float = 1.5
    rounds: int = 3
    clock: Literal["wall", "cpu"] = "wall"
    methods: Sequence[Any] = ("cached", "jacobi", "auto")
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    autocast: torch.dtype | None = None
    runs_naive: bool | None = None
    log_scale_std: float = 0.3
    seed: int = 0
    gemm_size: int = 2048
    peer: Path | None = None

    @property
    def includes_naive(self) -> bool:
        return self.config.num_tokens <= NAIVE_TOKENS if self.runs_naive is None else self.runs_naive

    @property
    def prefix_length(self) -> int:
        """Condition tokens in front of the others, in conditional blocks."""
        return self.config.prefix_length(1)
