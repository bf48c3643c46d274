"""DDP and FSDP2 on two CUDA devices: whole runs with grids and checkpoints, and caches built by both processes."""

import pytest
import torch

from tests.gpu.cuda.test_runs import values_of
from tests.training.tiny_runs import losses_of
from tests.training.two_processes import in_two_processes

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


@pytest.mark.parametrize(("model", "engine"), [("simflow", "ddp"), ("simflow", "fsdp2"), ("sit", "fsdp2")])
def test_run_on_two_devices(model, engine, tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip("one device")
    values = values_of(model, "bfloat16", accumulation=2)
    if model == "sit":  # a frozen autoencoder: its moments, and the features, are cached by both processes
        values["training"]["cache_latents"] = True
        values["alignment"] = {"encoder": "toy", "layer": 1, "weight": 0.5, "cache": True, "mode": "repa"}
    outputs = in_two_processes(
        "tests.gpu.cuda.worker",
        tmp_path / "run",
        values,
        {"SIMFLOW_DATA": str(tmp_path / "data"), **ENGINES[engine]},
    )
    for rank, output in enumerate(outputs):
        assert f"cuda:{rank} step 4 {EXPECTED[engine]}" in output
    assert [row["step"] for row in losses_of(tmp_path / "run")] == [2, 4]
    assert len(list((tmp_path / "run" / "samples").glob("*.png"))) == 2
    if model == "sit":
        caches = sorted(path.parent.name for path in (tmp_path / "data").glob("*/*/cache.json"))
        assert len(caches) == 2
        assert not list((tmp_path / "data").glob("*/*.parts"))
