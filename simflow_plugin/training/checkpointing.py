"""Checkpoints of a run while it trains: gathered from all processes, written and verified by the main one.

    joint  ema  [ema_1  ema_2]  optimizer  [adversary  adversary_optimizer]  log_sums    +    state.json

Tensors are unsharded, so that a run may go on with another number of processes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from simflow_plugin.config.schema import RunConfig
from simflow_plugin.contracts import ImageDataset
from simflow_plugin.data.changes import data_changes
from simflow_plugin.errors import CheckpointError
from simflow_plugin.runs.checkpoints import (
    Checkpoint,
    latest_checkpoint,
    prune_checkpoints,
    read_checkpoint,
    save_checkpoint,
)
from simflow_plugin.runs.module_state import (
    check_optimizer,
    fitting_tensors,
    optimizer_state,
    restore_module,
    restore_optimizer,
    whole_tensors,
)
from simflow_plugin.runs.run_directory import RunDirectory
from simflow_plugin.training.adversary import AdversaryTraining
from simflow_plugin.training.averages import RunningMeans
from simflow_plugin.training.distributed.engine import TorchEngine
from simflow_plugin.training.distributed.processes import Processes
from simflow_plugin.training.ema import WeightAverages
from simflow_plugin.training.stability import BadSteps
from simflow_plugin.weights import fitted_state

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """Everything that training changes, as named tensors and plain values."""

    engine: TorchEngine
    averages: WeightAverages
    adversary: AdversaryTraining | None
    means: RunningMeans
    bad_steps: BadSteps

    def _trained(self) -> list[tuple[str, nn.Module, str, torch.optim.Optimizer]]:
        """Return the modules that are trained and their optimizers, each with the name of its file."""
        found = [("joint", self.engine.joint, "optimizer", self.engine.optimizer)]
        if self.adversary is not None:
            loss, optimizer = self.adversary.loss, self.adversary.optimizer
            found.append(("adversary", loss, "adversary_optimizer", optimizer))
        return found

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return all tensors on the main process, {} by name on the others; every process must call it."""
        accelerator = self.engine.accelerator
        groups: dict[str, Iterable[tuple[str, Tensor]]] = {
            name: average.average.items() for name, average in self.averages.by_file.items()
        }
        for name, module, optimizer_name, optimizer in self._trained():
            groups[name] = module.state_dict().items()
            groups[optimizer_name] = optimizer_state(module, optimizer).items()
        groups["log_sums"] = self.means.sums(accelerator).items()
        return {name: whole_tensors(group, accelerator.is_main_process) for name, group in groups.items()}

    def values(self) -> dict[str, Any]:
        """Return what is no tensor; waits for the device."""
        accelerator, counts = self.engine.accelerator, self.bad_steps.read()
        skipped, in_a_row = counts["skipped_steps"]
        return {
            "skipped_steps": skipped,
            "skipped_in_a_row": in_a_row,
            "bad_steps": counts,
            "steps_since_log": self.means.num_steps,
            "num_processes": accelerator.num_processes,
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
        }

    def check(self, checkpoint: Checkpoint) -> None:
        """Compare every tensor with what this run holds, and miss no value.

        Raises:
            NotFiniteError: naming the tensors that hold NaN or infinity.
            CheckpointError: if a file or value is missing, or a name, shape or type differs.
        """
        path = checkpoint.path
        checkpoint.require("seconds", "skipped_steps", "skipped_in_a_row", "steps_since_log", "scaler")
        for name, module, optimizer_name, optimizer in self._trained():
            fitting_tensors(module.state_dict(), checkpoint.tensors(name), f"{path}/{name}")
            state = checkpoint.tensors(optimizer_name)
            check_optimizer(module, optimizer, state, f"{path}/{optimizer_name}")
        for name, average in self.averages.by_file.items():
            fitting_tensors(average.average, checkpoint.tensors(name), f"{path}/{name}")
        self.means.check(checkpoint.tensors("log_sums"), f"{path}/log_sums")

    def restore(self, checkpoint: Checkpoint) -> None:
        """Put back what `tensors` and `values` returned; nothing, unless all of it fits.

        Raises:
            CheckpointError: see `check`.
        """
        self.check(checkpoint)
        path, state, accelerator = checkpoint.path, checkpoint.state, self.engine.accelerator
        for name, module, optimizer_name, optimizer in self._trained():
            restore_module(module, checkpoint.tensors(name), path)
            restore_optimizer(module, optimizer, checkpoint.tensors(optimizer_name))
        for name, average in self.averages.by_file.items():
            held, source = checkpoint.tensors(name), f"{path}/{name}"
            fitting = fitted_state(average.average, held, source, error=CheckpointError)
            average.load_state_dict(self.engine.scattered(fitting))
        sums, num_steps = checkpoint.tensors("log_sums"), int(state["steps_since_log"])
        self.means.restore(sums, num_steps, accelerator.device)
        # Checkpoints of earlier versions count skipped steps only.
        earlier = {"skipped_steps": (int(state["skipped_steps"]), int(state["skipped_in_a_row"]))}
        self.bad_steps.restore(state.get("bad_steps", earlier))
        if accelerator.scaler is not None and state["scaler"] is not None:
            accelerator.scaler.load_state_dict(state["scaler"])


class Checkpointing:
    """Saving and restoring of everything that training changes. Every process must call every method.

    Args:
        config: of the run: how many checkpoints are kept, and which one guides its samples.
        description: facts of the run for `state.json`, beside those of the snapshot.
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

    def save(self, step: int, seconds: float, corrupt: set[int]) -> None:
        """Write a checkpoint; every process learns whether that went well."""
        tensors = self._snapshot.tensors()
        state = {
            "run_id": self._run.run_id,
            "seconds": seconds,
            **self._snapshot.values(),
            **self._description,
            "corrupt_images": sorted(self._processes.union(corrupt)),
        }

        def write() -> None:
            self._run.check_lock()
            folder, options = self._run.checkpoints, self._options
            save_checkpoint(folder, step, tensors, state)
            keep = options.keep_checkpoints
            prune_checkpoints(folder, step, keep, options.keep_every, self._guide_step)

        self._processes.run_on_main(write)

    def save_averages(self, step: int) -> None:
        """Keep the averages of this step for good, to make others of them."""
        is_main = self._processes.rank == 0
        tensors = {
            name: whole_tensors(average.average.items(), is_main)
            for name, average in self._snapshot.averages.by_file.items()
        }
        folder = self._run.averages
        self._processes.run_on_main(lambda: save_checkpoint(folder, step, tensors, {}))

    def restore(self, dataset: ImageDataset) -> Checkpoint | None:
        """Restore the newest intact checkpoint, which the main process verifies; None where there is none yet."""
        checkpoint = self._processes.run_on_main(lambda: self._newest(dataset))
        path = self._processes.announce(None if checkpoint is None else checkpoint.path)
        if path is None:
            return None
        checkpoint = checkpoint or read_checkpoint(path)
        self._snapshot.restore(checkpoint)
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
