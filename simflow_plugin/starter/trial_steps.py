"""Time and memory of a few real training steps and of a grid of samples on this machine."""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from simflow_plugin.config.schema import RunConfig
from simflow_plugin.processors import num_usable_processors
from simflow_plugin.runs.parts import build_dataset, build_parts
from simflow_plugin.runs.run_directory import RunDirectory
from simflow_plugin.train import make_accelerator
from simflow_plugin.training.interrupts import stop_on_signals
from simflow_plugin.training.loop import Trainer
from simflow_plugin.training.sample_grids import MAX_ROWS, ROWS_WITHOUT_CLASSES

WARM_UP_STEPS, TIMED_STEPS = 3, 6
SCHEDULER = Path("/proc/self/schedstat")


@dataclass(frozen=True)
class Timing:
    """Seconds measured.

    Args:
        step: of one optimizer step.
        grid: of one grid of samples.
        grid_images: number of samples in the grid.
        peak_bytes: most memory of steps and grid: of the CUDA allocator, elsewhere of this process in all; None where
            the system does not say.
        share: of the time in which the work could have run, that in which it did; less where it waited for a processor
            that other programs keep busy. 1 where the system does not say.
    """

    step: float
    grid: float
    grid_images: int
    peak_bytes: int | None = None
    device: str = ""
    device_type: str = "cpu"
    share: float = 1.0


def time_here(config: RunConfig) -> Timing:
    """Train a few steps of `config` in a temporary folder, as training will, and time them.

    The first steps and the first grid are left out: kernels are compiled and memory is allocated in them.
    """
    steps = WARM_UP_STEPS + TIMED_STEPS
    training = config.training.model_copy(
        update={"steps": steps, "log_every": WARM_UP_STEPS, "sample_every": steps, "checkpoint_every": steps}
    )
    short = config.model_copy(update={"training": training})
    dataset = build_dataset(short, "train")
    parts = build_parts(short, dataset.num_classes)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder, stop_on_signals() as stop:
        run = RunDirectory(Path(folder) / "run")
        run.prepare(short, [])
        accelerator = make_accelerator(short)
        trainer = Trainer(short, run, parts, dataset, accelerator, stop, shows_progress=False)
        before = _ran_and_waited()
        trainer.train()
        share = share_between(before, _ran_and_waited())
        rows = run.read_metrics()
        started = time.monotonic()
        trainer.sample_grids.save(steps, trainer.joint, trainer.averages.main)
        grid = time.monotonic() - started
    # Of more threads than processors some wait for each other.
    is_share_known = trainer.device.type == "cpu" and torch.get_num_threads() <= num_usable_processors()
    first, last = rows[0]["seconds"], rows[-1]["seconds"]
    num_rows = min(MAX_ROWS, dataset.num_classes) if dataset.num_classes else ROWS_WITHOUT_CLASSES
    return Timing(
        (last - first) / TIMED_STEPS,
        grid,
        num_rows * config.sampling.grid_per_class,
        _peak_bytes(trainer.device),
        torch.cuda.get_device_name(trainer.device) if trainer.device.type == "cuda" else "this machine's CPU",
        trainer.device.type,
        share if is_share_known else 1.0,
    )


def share_between(before: tuple[int, int] | None, after: tuple[int, int] | None) -> float:
    """Return the share of its runnable time that a thread ran for; 1 where it is not known.

    Time in which it slept does not count: work on one of many threads is no sign of other programs.

    Args:
        before: ns that the thread ran, and that it waited for a processor, at the beginning; None if unknown.
        after: at the end.
    """
    if before is None or after is None:
        return 1.0
    ran, waited = after[0] - before[0], after[1] - before[1]
    return ran / (ran + waited) if ran > 0 else 1.0


def _ran_and_waited() -> tuple[int, int] | None:
    """Return the scheduler's two numbers of the main thread, in which training runs; None where there are none."""
    try:
        ran, waited, _ = SCHEDULER.read_text(encoding="ascii").split()
        return int(ran), int(waited)
    except (OSError, ValueError):  # not Linux, or a system that keeps none
        return None


def share_of_one(config: RunConfig, devices: int) -> RunConfig:
    """Return the configuration of one process with the work that one of `devices` has in each step."""
    training = config.training
    share = training.model_copy(update={"batch_size": training.batch_size // devices})
    return config.model_copy(update={"training": share})


def _peak_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # not a Unix
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
