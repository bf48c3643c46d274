"""Content of a checkpoint of the loop: everything that training changes, as named tensors and plain values.

    joint  ema  [ema_1  ema_2]  optimizer  [adversary  adversary_optimizer]  log_sums    +    state.json

Tensors are unsharded, so that a run may go on with another number of processes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from torch import Tensor

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
        joint = self.engine.joint
        groups: dict[str, Iterable[tuple[str, Tensor]]] = {
            "joint": joint.state_dict().items(),
            **{name: a.state_dict().items() for name, a in self.averages.by_file.items()},
            "optimizer": optimizer_state(joint, self.engine.optimizer).items(),
            "log_sums": self.means.sums(accelerator).items(),
        }
        if self.adversary is not None:
            loss, optimizer = self.adversary.loss, self.adversary.optimizer
            groups["adversary"] = loss.state_dict().items()
            groups["adversary_optimizer"] = optimizer_state(loss, optimizer).items()
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
        joint = self.engine.joint
        fitting_tensors(joint.state_dict(), checkpoint.tensors("joint"), str(path))
        for name, average in self.averages.by_file.items():
            fitting_tensors(average.state_dict(), checkpoint.tensors(name), f"{path}/{name}")
        check_optimizer(joint, self.engine.optimizer, checkpoint.tensors("optimizer"), f"{path}/optimizer")
        self.means.check(checkpoint.tensors("log_sums"), f"{path}/log_sums")
        if self.adversary is not None:
            if not checkpoint.has("adversary"):
                raise CheckpointError(
                    f"{path}: holds no discriminator. Start a new run in another directory."
                )
            loss, optimizer = self.adversary.loss, self.adversary.optimizer
            fitting_tensors(loss.state_dict(), checkpoint.tensors("adversary"), f"{path}/adversary")
            tensors = checkpoint.tensors("adversary_optimizer")
            check_optimizer(loss, optimizer, tensors, f"{path}/adversary_optimizer")

    def restore(self, checkpoint: Checkpoint, accelerator: Accelerator) -> None:
        """Put back what `tensors` and `values` returned; nothing, unless all of it fits.

        Raises:
            CheckpointError: see `check`.
        """
        self.check(checkpoint)
        device, state = accelerator.device, checkpoint.state
        joint, optimizer = self.engine.joint, self.engine.optimizer
        restore_module(joint, checkpoint.tensors("joint"), checkpoint.path)
        for name, average in self.averages.by_file.items():
            held = checkpoint.tensors(name)
            known = {key: tensor for key, tensor in held.items() if key in average.state_dict()}
            fitted_state(average.state_dict(), known, f"{checkpoint.path}/{name}", error=CheckpointError)
            average.load_state_dict(self.engine.scattered(known))
        restore_optimizer(joint, optimizer, checkpoint.tensors("optimizer"), checkpoint.path)
        if self.adversary is not None:
            loss, optimizer = self.adversary.loss, self.adversary.optimizer
            restore_module(loss, checkpoint.tensors("adversary"), checkpoint.path)
            tensors = checkpoint.tensors("adversary_optimizer")
            restore_optimizer(loss, optimizer, tensors, checkpoint.path)
        self.means.restore(checkpoint.tensors("log_sums"), int(state["steps_since_log"]), device)
        # Checkpoints of earlier versions count skipped steps only.
        earlier = {"skipped_steps": (int(state["skipped_steps"]), int(state["skipped_in_a_row"]))}
        self.bad_steps.restore(state.get("bad_steps", earlier))
        if accelerator.scaler is not None and state["scaler"] is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
