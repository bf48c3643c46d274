"""The result of a bench: rows with ratios, as a table and as JSON."""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from simflow_plugin.errors import RunDirectoryError
from simflow_plugin.files import replacing


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        guidance: weight of a guided run, 0 of any other.
        seconds: median of the rounds.
        speedup: how many times as fast as `ours` (our training step, or our `cached` sampler) and, where it ran, as
            `ml-starflow` (its training step, or its cached sampler).
        gemm_fraction: of this machine's GEMM speed that the least arithmetic of the work reaches.
        difference: largest absolute difference of the tokens from `reference`; None for what makes no tokens.
        reference: name of the row that the tokens are compared with.
        note: method and network passes of every block, in training order.
    """

    name: str
    guidance: float
    seconds: float
    rounds: tuple[float, ...]
    speedup: dict[str, float]
    gemm_fraction: float
    difference: float | None
    reference: str
    note: str = ""


@dataclass(frozen=True)
class BenchReport:
    """All numbers of a bench.

    Args:
        machine: device, threads, versions.
        setting: the flow and the batch.
        gemm_flops: FLOP/s of a large square product in the compute type of the bench, by its library; fractions are of
            the fastest.
        memory: bytes of tensors that forward and backward add at their peak, by name.
    """

    machine: dict[str, Any]
    setting: dict[str, Any]
    gemm_flops: dict[str, float]
    rows: tuple[Row, ...]
    memory: dict[str, int]

    def save(self, path: Path) -> None:
        """Write JSON.

        Raises:
            RunDirectoryError: if the file cannot be written.
        """
        with replacing(path, RunDirectoryError) as part:
            part.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    def print(self, console: Console | None = None) -> None:
        """Print the tables."""
        # A pipe has no width: a table for a file should not wrap at 80.
        console = console or Console(width=None if sys.stdout.isatty() else 140)
        for facts in (self.machine, self.setting):
            console.print(", ".join(f"{key} {value}" for key, value in facts.items()), highlight=False)
        for name, speed in self.gemm_flops.items():
            console.print(f"{name}: {speed / 1e9:,.0f} GFLOP/s", highlight=False)
        console.print(self._table(), highlight=False)
        for name, size in self.memory.items():
            console.print(
                f"memory of {name}: {size / 2**20:,.1f} MiB of tensors at the peak", highlight=False
            )

    def _table(self) -> Table:
        bases = list(dict.fromkeys(base for row in self.rows for base in row.speedup))
        reference = next((row.reference for row in self.rows if row.reference), "")
        table = Table(box=None, pad_edge=False)
        table.add_column("what")
        speedups = [f"x {base}" for base in bases]
        for header in ("guidance", "seconds", *speedups, "of GEMM", f"max |x - {reference}|"):
            table.add_column(header, justify="right")
        table.add_column("blocks")
        for row in self.rows:
            table.add_row(
                row.name,
                f"{row.guidance:g}" if row.guidance else "",
                f"{row.seconds:.3f}",
                *(f"{row.speedup[base]:.2f}" if base in row.speedup else "" for base in bases),
                f"{row.gemm_fraction:.0%}",
                "" if row.difference is None else f"{row.difference:.1e}",
                row.note,
            )
        return table


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return what the numbers depend on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
