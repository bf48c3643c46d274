"""Time and memory of a few real training steps and of a grid of samples on this machine."""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from simflow_plugin.config.schema import RunConfig
from simflow_plugin.runs.run_directory import RunDirectory

if TYPE_CHECKING:
    import torch

WARM_UP_STEPS, TIMED_STEPS = 3, 6


@dataclass(frozen=True)
class Timing:
    """Seconds measured.

    Args:
        step: of one optimizer step.
        grid: of one grid of samples.
        grid_images: number of samples in the grid.
        peak_bytes: most memory of steps and grid: of the CUDA allocator, elsewhere of this process in all; None where
            the system does not say.
        device: name of the device.
        share: of the processor's time that this process got; less where other programs keep it busy.
    """

    step: float
    grid: float
    grid_images: int
    peak_bytes: int | None = None
    device: str = ""
    share: float = 1.0


def time_here(config: RunConfig) -> Timing:
    """Train a few steps of `config` in a temporary folder, as training will, and time them.

    The first steps and the first grid are left out: kernels are compiled and memory is allocated in them.
    """
    import torch

    from simflow_plugin.runs.parts import build_dataset, build_parts
    from simflow_plugin.train import make_accelerator
    from simflow_plugin.training.interrupts import stop_on_signals
    from simflow_plugin.training.loop import Trainer
    from simflow_plugin.training.sample_grids import MAX_ROWS, ROWS_WITHOUT_CLASSES

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
        began, began_cpu = time.monotonic(), time.process_time()
        trainer.train()
        share = (time.process_time() - began_cpu) / (time.monotonic() - began) / torch.get_num_threads()
        rows = run.read_metrics()
        started = time.monotonic()
        trainer.sample_grids.save(steps, trainer.joint, trainer.averages.main)
        grid = time.monotonic() - started
    first, last = rows[0]["seconds"], rows[-1]["seconds"]
    num_rows = min(MAX_ROWS, dataset.num_classes) if dataset.num_classes else ROWS_WITHOUT_CLASSES
    return Timing(
        (last - first) / TIMED_STEPS,
        grid,
        num_rows * config.sampling.grid_per_class,
        _peak_bytes(trainer.device),
        torch.cuda.get_device_name(trainer.device) if trainer.device.type == "cuda" else "this machine's CPU",
        min(1.0, share) if trainer.device.type == "cpu" else 1.0,
    )


def share_of_one(config: RunConfig, devices: int) -> RunConfig:
    """Return the configuration of one process with the work that one of `devices` has in each step."""
    training = config.training
    share = training.model_copy(update={"batch_size": training.batch_size // devices})
    return config.model_copy(update={"training": share})


def _peak_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # not a Unix
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
