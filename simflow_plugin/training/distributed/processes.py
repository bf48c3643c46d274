"""Processes of a run: supported engines, and votes and announcements between hosts without synchronising devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    parse_flag_from_env,
)
from torch import distributed, nn

from simflow_plugin.errors import ConfigError
from simflow_plugin.objective import JointObjective
from simflow_plugin.training.interrupts import Interrupted

T = TypeVar("T")

PATIENCE = timedelta(hours=2)
"""Time that processes wait for each other: writing a large checkpoint to a busy file system takes its time."""


class Processes:
    """Votes, announcements and waiting; free when there is one process.

    Args:
        num_processes: of the run; the default process group must exist if there are more than one.
    """

    def __init__(self, num_processes: int) -> None:
        self.num_processes = num_processes
        self._group: Any = (
            distributed.new_group(backend="gloo", timeout=PATIENCE) if num_processes > 1 else None
        )
        self.rank = distributed.get_rank() if num_processes > 1 else 0

    def any(self, vote: bool) -> bool:
        """Return whether any process votes yes; every process must call it."""
        if self._group is None:
            return vote
        votes = torch.tensor(int(vote))
        distributed.all_reduce(votes, distributed.ReduceOp.MAX, group=self._group)
        return bool(votes)

    def run_on_main(self, work: Callable[[], T]) -> T | None:
        """Run `work` on the main process while the others wait; a failure is raised on all.

        Returns:
            What `work` returned, on the main process; None on the others.
        """
        result: T | None = None
        failure: Exception | None = None
        if self.rank == 0:
            try:
                result = work()
            except Exception as error:  # whatever it is, the other processes must not wait for ever
                failure = error
        failure = self.announce(failure)
        if failure is not None:
            raise failure
        return result

    def run_on_all(self, work: Callable[[int, int], None]) -> None:
        """Run `work(rank, number of processes)` on each process; the first failure is raised on all of them."""
        failure: Exception | None = None
        try:
            work(self.rank, self.num_processes)
        except Exception as error:  # whatever it is, the other processes must not wait for ever
            failure = error
        failures = [failure]
        if self._group is not None:
            failures = [None] * self.num_processes
            distributed.all_gather_object(failures, failure, group=self._group)
        for found in failures:
            if found is not None:
                raise found

    def union(self, values: set[int]) -> set[int]:
        """Return the values of all processes together; every process must call it."""
        if self._group is None:
            return values
        gathered: list[set[int]] = [set() for _ in range(distributed.get_world_size(self._group))]
        distributed.all_gather_object(gathered, values, group=self._group)
        return set().union(*gathered)

    def main_first(self, work: Callable[[], T]) -> T:
        """Return what `work` returns, done by the main process first: the others find the files that it made."""
        result: Any = self.run_on_main(work)
        return result if self.rank == 0 else work()

    def announce(self, value: Any) -> Any:
        """Return the main process's `value` on all of them; every process must call it."""
        if self._group is None:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0, group=self._group)
        return values[0]


@contextmanager
def leaving_together() -> Iterator[None]:
    """Close the process groups at the end of the block, or when all processes leave it because one was interrupted.

    gloo's threads abort a process that ends without this (pytorch/pytorch#190489). A process that fails alone closes
    nothing: the others may still wait for it, and the launcher ends them.
    """
    try:
        yield
    except Interrupted:
        _close_process_groups()
        raise
    _close_process_groups()


def _close_process_groups() -> None:
    if distributed.is_initialized():
        # Nobody closes connections that another process still reads from.
        distributed.barrier()
        distributed.destroy_process_group()


def process_group_options(has_gpu: bool) -> dict[str, Any]:
    """Return the options of `Accelerator` that choose between GPU and CPU.

    Raises:
        ConfigError: if accelerate was configured for DeepSpeed, before it imports that package.
    """
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        raise ConfigError(_unsupported("DeepSpeed"))
    # A gradient is a view of the buffer that it is averaged in, not a second copy.
    handlers = [DistributedDataParallelKwargs(gradient_as_bucket_view=True)]
    return {"cpu": not has_gpu, "kwargs_handlers": handlers}


def _unsupported(engine: str) -> str:
    return (
        f"accelerate was configured for {engine}, which this loop does not support. Use `accelerate launch "
        "--config_file` with configs/accelerate/fsdp2_zero3.yaml (shards as ZeRO-3 does), fsdp2_zero2.yaml (as ZeRO-1 "
        "and ZeRO-2) or ddp.yaml. Checkpoints hold unsharded tensors and go on under any of them."
    )


def configure_engine(accelerator: Accelerator) -> None:
    """Refuse engines that this loop does not run.

    FSDP2 leaves precision to autocast, so that losses stay float32 and sharding changes no numbers.

    Raises:
        ConfigError: naming the engine and what to use in its place.
    """
    kind = accelerator.distributed_type
    if kind == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise ConfigError(_unsupported("FSDP version 1"))
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ConfigError(_unsupported(kind.value))
    if kind == DistributedType.FSDP:
        from torch.distributed.fsdp import MixedPrecisionPolicy

        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()


def synchronise_batch_norms(joint: JointObjective, num_processes: int) -> JointObjective:
    """Let batch norms see the rows of all processes, as in the REPA-E host; torch has this on GPUs only.

    Those of frozen networks, in a perceptual loss, see no statistics of rows: they stay as they are.
    """
    if num_processes > 1 and next(joint.parameters()).device.type == "cuda":
        convert_batch_norms(joint)
    return joint


def convert_batch_norms(joint: JointObjective) -> None:
    """Replace the batch norms of autoencoder and model by synchronised ones."""
    convert = nn.SyncBatchNorm.convert_sync_batchnorm
    joint.autoencoder = convert(joint.autoencoder)
    if joint.model is not None:
        joint.model = convert(joint.model)


def keep_frozen_at_home(joint: JointObjective) -> None:
    """Exclude from DDP the frozen networks of perceptual losses, which are the same in all processes.

    Their weights are buffers, and DDP would broadcast them before every forward pass.
    """
    names = [name for name, _ in joint.named_buffers() if name.startswith("reconstruction.")]
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(joint, names)
