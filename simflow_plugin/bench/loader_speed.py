"""Data loader throughput in images per second, and the step time below which training waits for it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from simflow_plugin.config.loading import load_config
from simflow_plugin.data.loader import make_loader
from simflow_plugin.data.order import GlobalBatches
from simflow_plugin.runs.parts import build_dataset


@dataclass(frozen=True)
class LoaderSpeed:
    """Reading speed of one process.

    Args:
        images_per_second: of the loader alone.
        batch_size: images of a global batch.
    """

    images_per_second: float
    batch_size: int
    num_workers: int
    data: str

    def __str__(self) -> str:
        seconds = self.batch_size / self.images_per_second
        rate = f"{self.images_per_second:.0f}"
        return (
            f"loader: {rate} images/s ({self.data}, {self.num_workers} workers), {1000 * seconds:.1f} ms for a batch "
            f"of {self.batch_size}. On one process, training waits for it only if a step takes less: if the log's "
            f"images_per_second comes near {rate}; then raise training.num_workers."
        )


def measure_loader(name: str, overrides: Sequence[str] = (), num_batches: int = 20) -> LoaderSpeed:
    """Time the training loader of a configuration, without model and device.

    The first batch, which pays for starting workers and opening files, is not counted.

    Args:
        name: of a shipped configuration, or a path.
    Raises:
        ConfigError: if the configuration is not one; DataError: if its data is not there.
    """
    config = load_config(name, list(overrides))
    training = config.training
    loader = make_loader(
        build_dataset(config, "train"),
        GlobalBatches(training.batch_size),
        config.seed,
        range(num_batches + 1),
        num_workers=training.num_workers,
    )
    batches = iter(loader)
    next(batches)
    started = time.perf_counter()
    num_images = sum(len(batch.labels) for batch in batches)
    speed = num_images / (time.perf_counter() - started)
    return LoaderSpeed(speed, training.batch_size, training.num_workers, config.data.name)
