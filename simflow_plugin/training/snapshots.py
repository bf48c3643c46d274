"""Content of a checkpoint of the loop: everything that training changes, as named tensors and plain values.

    joint  ema  [ema_1  ema_2]  optimizer  [adversary  adversary_optimizer]  log_sums    +    state.json

Tensors are unsharded, so that a run may go on with another number of processes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from simflow_plugin.errors import CheckpointError
from simflow_plugin.runs.checkpoints import Checkpoint
from simflow_plugin.runs.module_state import (
    check_optimizer,
    fitting_tensors,
    optimizer_state,
    restore_module,
    restore_optimizer,
    whole_tensors,
)
from simflow_plugin.training.adversary import AdversaryTraining
from simflow_plugin.training.averages import RunningMeans
from simflow_plugin.training.distributed.engine import TorchEngine
from simflow_plugin.training.ema import WeightAverages
from simflow_plugin.training.stability import BadSteps
from simflow_plugin.weights import fitted_state


class Trained(NamedTuple):
    """A network that an optimizer moves, and the files of both."""

    file: str
    module: nn.Module
    optimizer_file: str
    optimizer: torch.optim.Optimizer


@dataclass(frozen=True)
class Snapshot:
    """State that training changes.

    Args:
        engine: of the joint objective and its optimizer.
        averages: of the joint objective's weights.
        adversary: the discriminator with its losses and its optimizer, or None.
        means: of the log.
        bad_steps: skipped steps and steps with zero gradients.
    """

    engine: TorchEngine
    averages: WeightAverages
    adversary: AdversaryTraining | None
    means: RunningMeans
    bad_steps: BadSteps

    def tensors(self, accelerator: Accelerator) -> dict[str, dict[str, Tensor]]:
        """Return all tensors on the main process, {} by name on the others; every process must call it."""
        groups: dict[str, Iterable[tuple[str, Tensor]]] = {}
        for trained in self._trained():
            groups[trained.file] = trained.module.state_dict().items()
            groups[trained.optimizer_file] = optimizer_state(trained.module, trained.optimizer).items()
        groups |= {name: average.state_dict().items() for name, average in self.averages.by_file.items()}
        groups["log_sums"] = self.means.sums(accelerator).items()
        return {name: whole_tensors(group, accelerator.is_main_process) for name, group in groups.items()}

    def values(self, accelerator: Accelerator) -> dict[str, Any]:
        """Return what is no tensor; waits for the device."""
        counts = self.bad_steps.read()
        skipped, in_a_row = counts["skipped_steps"]
        scaler = accelerator.scaler
        return {
            "skipped_steps": skipped,
            "skipped_in_a_row": in_a_row,
            "bad_steps": counts,
            "steps_since_log": self.means.num_steps,
            "num_processes": accelerator.num_processes,
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def check(self, checkpoint: Checkpoint) -> None:
        """Compare every tensor with what this run holds, and miss no value.

        Raises:
            NotFiniteError: naming the tensors that hold NaN or infinity.
            CheckpointError: if a file or value is missing, or a name, shape or type differs.
        """
        path = checkpoint.path
        checkpoint.require("seconds", "skipped_steps", "skipped_in_a_row", "steps_since_log", "scaler")
        if self.adversary is not None and not checkpoint.has("adversary"):
            raise CheckpointError(f"{path}: holds no discriminator. Start a new run in another directory.")
        for file, module, optimizer_file, optimizer in self._trained():
            fitting_tensors(module.state_dict(), checkpoint.tensors(file), f"{path}/{file}")
            check_optimizer(module, optimizer, checkpoint.tensors(optimizer_file), f"{path}/{optimizer_file}")
        for name, average in self.averages.by_file.items():
            fitting_tensors(average.state_dict(), checkpoint.tensors(name), f"{path}/{name}")
        self.means.check(checkpoint.tensors("log_sums"), f"{path}/log_sums")

    def restore(self, checkpoint: Checkpoint, accelerator: Accelerator) -> None:
        """Put back what `tensors` and `values` returned; nothing, unless all of it fits.

        Raises:
            CheckpointError: see `check`.
        """
        self.check(checkpoint)
        device, state = accelerator.device, checkpoint.state
        for file, module, optimizer_file, optimizer in self._trained():
            restore_module(module, checkpoint.tensors(file), checkpoint.path)
            restore_optimizer(module, optimizer, checkpoint.tensors(optimizer_file), checkpoint.path)
        for name, average in self.averages.by_file.items():
            held = checkpoint.tensors(name)
            known = {key: tensor for key, tensor in held.items() if key in average.state_dict()}
            fitted_state(average.state_dict(), known, f"{checkpoint.path}/{name}", error=CheckpointError)
            average.load_state_dict(self.engine.scattered(known))
        self.means.restore(checkpoint.tensors("log_sums"), int(state["steps_since_log"]), device)
        # Checkpoints of earlier versions count skipped steps only.
        earlier = {"skipped_steps": (int(state["skipped_steps"]), int(state["skipped_in_a_row"]))}
        self.bad_steps.restore(state.get("bad_steps", earlier))
        if accelerator.scaler is not None and state["scaler"] is not None:
            accelerator.scaler.load_state_dict(state["scaler"])

    def _trained(self) -> list[Trained]:
        engine, adversary = self.engine, self.adversary
        found = [Trained("joint", engine.joint, "optimizer", engine.optimizer)]
        if adversary is not None:
            found.append(Trained("adversary", adversary.loss, "adversary_optimizer", adversary.optimizer))
        return found
