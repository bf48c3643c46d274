"""Checkpoints of a run while it trains: written and verified by the main process, restored by all."""

from __future__ import annotations

import logging
from typing import Any

from simflow_plugin.config.schema import RunConfig
from simflow_plugin.contracts import ImageDataset
from simflow_plugin.data.changes import data_changes
from simflow_plugin.runs.checkpoints import (
    Checkpoint,
    latest_checkpoint,
    prune_checkpoints,
    read_checkpoint,
    save_checkpoint,
)
from simflow_plugin.runs.module_state import whole_tensors
from simflow_plugin.runs.power_averages import snapshot_folder
from simflow_plugin.runs.run_directory import RunDirectory
from simflow_plugin.training.distributed.processes import Processes
from simflow_plugin.training.snapshots import Snapshot

log = logging.getLogger(__name__)


class Checkpointing:
    """Saving and restoring of everything that training changes. Every process must call every method.

    Args:
        run: directory.
        config: of the run: how many checkpoints are kept, and which one guides its samples.
        processes: of the run.
        snapshot: of the state that changes.
        description: facts of the run beside it, for `state.json`.
    """

    def __init__(
        self,
        run: RunDirectory,
        config: RunConfig,
        processes: Processes,
        snapshot: Snapshot,
        description: dict[str, Any],
    ) -> None:
        self._run, self._options, self._processes = run, config.training, processes
        guide = config.sampling.autoguidance
        self._guide_step = guide.step if guide is not None and guide.run is None else None
        self._snapshot, self._description = snapshot, description
        self._accelerator = snapshot.engine.accelerator
        self._is_main = self._accelerator.is_main_process

    def save(self, step: int, seconds: float, corrupt: set[int]) -> None:
        """Write a checkpoint; every process learns whether that went well."""
        tensors = self._snapshot.tensors(self._accelerator)
        state = {
            "run_id": self._run.run_id,
            "seconds": seconds,
            **self._snapshot.values(self._accelerator),
            **self._description,
            "corrupt_images": sorted(self._processes.union(corrupt)),
        }

        def write() -> None:
            self._run.check_lock()
            folder, options = self._run.checkpoints, self._options
            save_checkpoint(folder, step, tensors, state)
            keep = options.keep_checkpoints
            prune_checkpoints(folder, step, keep, options.keep_every, self._guide_step)

        self._processes.run_on_main(write if self._is_main else None)

    def save_averages(self, step: int) -> None:
        """Keep the averages of this step for good, to make others of them."""
        tensors = {
            name: whole_tensors(average.state_dict().items(), self._is_main)
            for name, average in self._snapshot.averages.by_file.items()
        }
        folder = snapshot_folder(self._run.path)
        self._processes.run_on_main(
            (lambda: save_checkpoint(folder, step, tensors, {})) if self._is_main else None
        )

    def restore(self, dataset: ImageDataset) -> Checkpoint | None:
        """Restore the newest intact checkpoint, which the main process verifies; None where there is none yet."""
        checkpoint: Checkpoint | None = self._processes.run_on_main(
            (lambda: self._newest(dataset)) if self._is_main else None
        )
        path = self._processes.announce(None if checkpoint is None else checkpoint.path)
        if path is None:
            return None
        checkpoint = checkpoint or read_checkpoint(path)
        self._snapshot.restore(checkpoint, self._accelerator)
        return checkpoint

    def _newest(self, dataset: ImageDataset) -> Checkpoint | None:
        checkpoint = latest_checkpoint(self._run.checkpoints)
        if checkpoint is not None:
            self._run.check_own(checkpoint)
            for change in data_changes(checkpoint.state, dataset):
                log.warning("%s: %s", self._run.path, change)
        self._run.forget_metrics_after(checkpoint.step if checkpoint else 0)
        return checkpoint

    def last_name(self) -> str:
        """Return the folder of the newest intact checkpoint, for a message."""
        checkpoint = latest_checkpoint(self._run.checkpoints)
        return str(checkpoint.path) if checkpoint is not None else "(none yet)"
