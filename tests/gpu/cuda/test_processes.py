"""DDP and FSDP2 on two CUDA devices: whole runs with grids and checkpoints, and caches built by both processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.gpu.cuda.test_runs import values_of
from tests.training.tiny_runs import free_port, losses_of

ENGINES = {
    "ddp": {},
    "fsdp2": {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    },
}
EXPECTED = {"ddp": "DistributedDataParallel", "fsdp2": "FSDPJointObjective"}


def two_processes(out, values, engine):
    """Train on two devices; return what each process printed."""
    shared = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "PYTHONPATH": str(Path(__file__).parents[3]),
        "SIMFLOW_DATA": str(out.parent / "data"),
        **ENGINES[engine],
    }
    command = [sys.executable, "-m", "tests.gpu.cuda.worker", str(out), json.dumps(values)]
    started = [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert all(process.returncode == 0 for process in started), "\n".join(outputs)
    return outputs


@pytest.mark.parametrize(("model", "engine"), [("simflow", "ddp"), ("simflow", "fsdp2"), ("sit", "fsdp2")])
def test_run_on_two_devices(model, engine, tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip("one device")
    values = values_of(model, "bfloat16", accumulation=2)
    if model == "sit":  # a frozen autoencoder: its moments, and the features, are cached by both processes
        values["training"]["cache_latents"] = True
        values["alignment"] = {"encoder": "toy", "layer": 1, "weight": 0.5, "cache": True, "mode": "repa"}
    outputs = two_processes(tmp_path / "run", values, engine)
    for rank, output in enumerate(outputs):
        assert f"cuda:{rank} step 4 {EXPECTED[engine]}" in output
    assert [row["step"] for row in losses_of(tmp_path / "run")] == [2, 4]
    assert len(list((tmp_path / "run" / "samples").glob("*.png"))) == 2
    if model == "sit":
        caches = sorted(path.parent.name for path in (tmp_path / "data").glob("*/*/cache.json"))
        assert len(caches) == 2
        assert not list((tmp_path / "data").glob("*/*.parts"))
