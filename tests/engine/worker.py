"""One of two processes of a run: `python -m tests.engine.worker OUT RUNS`, under RANK and WORLD_SIZE.

RUNS is JSON: a list of {"name", "values", "fsdp", "stop_on_rank_1_after"}, trained one after the other.
"""

import json
import sys
from pathlib import Path

from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from simflow_plugin.engine.interrupts import Interrupted, StopRequest
from simflow_plugin.engine.loop import Trainer
from simflow_plugin.engine.parts import build_dataset, build_parts
from simflow_plugin.engine.processes import process_group_options
from simflow_plugin.engine.run_directory import RunDirectory
from tests.engine.tiny_runs import StopAfter, tiny_config


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


def train(out, name, values, fsdp=None, precision="no", stop_on_rank_1_after=None):
    config = tiny_config(values=values)
    accelerator = make_accelerator(fsdp, precision)
    run = RunDirectory(out / name)
    if accelerator.is_main_process:
        run.prepare(config, [])
    accelerator.wait_for_everyone()
    dataset = build_dataset(config, "train")
    stop = StopRequest()
    if stop_on_rank_1_after is not None and accelerator.process_index == 1:
        stop = StopAfter(stop_on_rank_1_after)
    trainer = Trainer(config, run, build_parts(config, dataset.num_classes), dataset, accelerator, stop)
    try:
        trainer.train()
    except Interrupted as interruption:
        print(name, interruption, flush=True)


if __name__ == "__main__":
    for arguments in json.loads(sys.argv[2]):
        train(Path(sys.argv[1]), **arguments)
