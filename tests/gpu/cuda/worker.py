"""One of two processes of a run on CUDA: `python -m tests.gpu.cuda.worker OUT VALUES`, as a launcher would start it.

On the null device they talk over gloo, which takes CUDA tensors by way of the host: NCCL is not stood in for.
"""

import json
import sys
from pathlib import Path

import pytest
from accelerate.utils import InitProcessGroupKwargs

from simflow_plugin.runs.parts import build_dataset, build_parts
from simflow_plugin.runs.run_directory import RunDirectory
from simflow_plugin.train import make_accelerator
from simflow_plugin.training.distributed import processes
from simflow_plugin.training.interrupts import StopRequest
from simflow_plugin.training.loop import Trainer
from tests.gpu.cuda.counting import IS_NULL, read_no_values
from tests.training.tiny_runs import tiny_config


def talk_over_gloo(monkeypatch):
    options_of = processes.process_group_options

    def with_gloo(has_gpu):
        options = options_of(has_gpu)
        options["kwargs_handlers"].append(InitProcessGroupKwargs(backend="gloo"))
        return options

    monkeypatch.setattr(processes, "process_group_options", with_gloo)


def train(out, values):
    config = tiny_config(values=values)
    accelerator = make_accelerator(config)
    run = RunDirectory(out)
    if accelerator.is_main_process:
        run.prepare(config, ["training.steps"])
    accelerator.wait_for_everyone()
    dataset = build_dataset(config, "train")
    parts = build_parts(config, dataset.num_classes)
    trainer = Trainer(config, run, parts, dataset, accelerator, StopRequest())
    trainer.train()
    kind = accelerator.distributed_type.value
    print(f"{kind} {trainer.device} step {trainer.step} {type(trainer.wrapped).__name__}", flush=True)


if __name__ == "__main__":
    if IS_NULL:
        patch = pytest.MonkeyPatch()
        read_no_values(patch)
        talk_over_gloo(patch)
    with processes.leaving_together():
        train(Path(sys.argv[1]), json.loads(sys.argv[2]))
