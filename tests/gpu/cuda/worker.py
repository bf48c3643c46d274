"""One of two processes of a run on CUDA: `python -m tests.gpu.cuda.worker OUT VALUES`, as a launcher would start it.

On the null device they talk over gloo, which takes CUDA tensors by way of the host: NCCL is not stood in for.
"""

import json
import sys
from pathlib import Path

import pytest
from accelerate.utils import InitProcessGroupKwargs

from simflow_plugin.training.distributed import processes
from tests.gpu.cuda.counting import IS_NULL, read_no_values
from tests.gpu.cuda.test_runs import trainer_on_cuda


def talk_over_gloo(monkeypatch):
    options_of = processes.process_group_options

    def with_gloo(has_gpu):
        options = options_of(has_gpu)
        options["kwargs_handlers"].append(InitProcessGroupKwargs(backend="gloo"))
        return options

    monkeypatch.setattr(processes, "process_group_options", with_gloo)


def train(out, values):
    trainer = trainer_on_cuda(values, out)
    trainer.train()
    kind = trainer.engine.accelerator.distributed_type.value
    print(f"{kind} {trainer.device} step {trainer.step} {type(trainer.wrapped).__name__}", flush=True)


if __name__ == "__main__":
    if IS_NULL:
        patch = pytest.MonkeyPatch()
        read_no_values(patch)
        talk_over_gloo(patch)
    with processes.leaving_together():
        train(Path(sys.argv[1]), json.loads(sys.argv[2]))
