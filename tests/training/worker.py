"""One of two processes of a run: `python -m tests.training.worker OUT RUNS`, under RANK and WORLD_SIZE.

RUNS is JSON: a list of the arguments of `train` beside OUT, trained one after the other.
"""

import json
import sys
from pathlib import Path

from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from simflow_plugin.runs.parts import build_dataset, build_parts
from simflow_plugin.runs.run_directory import RunDirectory
from simflow_plugin.training.distributed.processes import leaving_together, process_group_options
from simflow_plugin.training.interrupts import Interrupted, StopRequest
from simflow_plugin.training.loop import Trainer
from tests.training.tiny_runs import StopAfter, poison_images, tiny_config


def make_accelerator(fsdp, precision):
    """Accelerate shards on accelerators only; told that this is one, its own FSDP2 path runs on the CPU too."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(mixed_precision=precision, **process_group_options(has_gpu=False))
    if fsdp is not None:
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2, **fsdp)
        if precision != "no":
            accelerator.state.fsdp_plugin.set_mixed_precision(precision)
        accelerator.state.distributed_type = DistributedType.FSDP
    return accelerator


def train(out, name, values, fsdp=None, precision="no", stop_after=None, poisoned_steps=()):
    """Train one run; what ends in `_after` or is poisoned happens to the second process only."""
    config = tiny_config(values=values)
    accelerator = make_accelerator(fsdp, precision)
    run = RunDirectory(out / name)
    if accelerator.is_main_process:
        run.prepare(config, [])
    accelerator.wait_for_everyone()
    dataset = build_dataset(config, "train")
    is_second = accelerator.process_index == 1
    stop = StopRequest()
    if is_second and stop_after is not None:
        stop = StopAfter(stop_after)
    trainer = Trainer(config, run, build_parts(config, dataset.num_classes), dataset, accelerator, stop)
    if is_second:
        poison_images(trainer, set(poisoned_steps))
    try:
        trainer.train()
    except Interrupted as interruption:
        print(name, interruption, flush=True)


if __name__ == "__main__":
    with leaving_together():
        for arguments in json.loads(sys.argv[2]):
            train(Path(sys.argv[1]), **arguments)
