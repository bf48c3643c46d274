"""Training engine over one process, DDP or FSDP2: precision, backward, optimizer step, state to save.

    wrapped = engine.prepare(joint, optimizer)
    for each micro-batch: with engine.micro_batch(is_last): ...; engine.backward(loss)
    outcome = engine.step()

The loop knows these methods only. A checkpoint holds unsharded named tensors (`simflow_plugin.runs.module_state`), so
that a run may go on with another number of processes.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from simflow_plugin.config.schema import Optimizer
from simflow_plugin.runs.module_state import place_like
from simflow_plugin.training.distributed.processes import configure_engine
from simflow_plugin.training.ema import averaged_tensors
from simflow_plugin.training.optimizers import Clipping, StepOutcome, clip_and_step, scale_loss


class TorchEngine:
    """One process, DDP or FSDP2: the backward pass averages gradients, and the loop's own optimizer steps.

    Raises:
        ConfigError: if accelerate was configured for something that this loop does not run.
    """

    def __init__(self, accelerator: Accelerator, options: Optimizer) -> None:
        configure_engine(accelerator)
        self.accelerator = accelerator
        self._clipping = Clipping(options.max_grad_norm, options.clipping)

    def prepare(self, joint: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Wrap what trains; return the module to call in the forward pass. Parameters may be shards afterwards."""
        self.joint = joint
        self.wrapped, prepared = self.accelerator.prepare(joint, optimizer)
        self.optimizer: torch.optim.Optimizer = getattr(prepared, "optimizer", prepared)
        return self.wrapped

    @property
    def is_sharded(self) -> bool:
        """True if parameters are sharded over processes outside the wrapped module's forward and backward."""
        return self.accelerator.distributed_type == DistributedType.FSDP

    def autocast(self) -> AbstractContextManager[None]:
        """Mixed precision: parameters stay float32, and operations that need float32 leave autocast themselves."""
        return self.accelerator.autocast()

    def loss_scale(self) -> Tensor | None:
        """Return what the backward pass will multiply losses by (float16), or None."""
        scaler = self.accelerator.scaler
        return None if scaler is None else scaler.scale(torch.ones((), device=self.accelerator.device))

    def micro_batch(self, is_last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of a micro-batch; gradients meet in the last one of a step."""
        return nullcontext() if is_last else self.accelerator.no_sync(self.wrapped)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`, a micro-batch's share of the step."""
        scale_loss(loss, self.accelerator.scaler).backward()

    def step(self) -> StepOutcome:
        """Clip, step unless a gradient is not finite, and clear the gradients."""
        return clip_and_step(self.optimizer, self._clipping, self.accelerator.scaler)

    def averaged(self) -> dict[str, Tensor]:
        """Return this process's part of each averaged tensor, by name: all of it, or a shard."""
        return averaged_tensors(self.joint)

    def scattered(self, whole: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return this process's part of unsharded tensors, some of those of `averaged`."""
        held = self.averaged()
        return {name: place_like(held[name], tensor) for name, tensor in whole.items() if name in held}
