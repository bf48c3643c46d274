"""A training step does not wait for the device, and copies nothing to it from memory that is not pinned."""

import pytest
import torch

from tests.flow.builders import build_flow
from tests.gpu.cuda.counting import IS_NULL, counted
from tests.gpu.cuda.test_runs import trainer_on_cuda, values_of


def values_with(model, cached, **training):
    """Return a run that aligns where it can, with moments and features from a cache or computed each time."""
    values = values_of(model, "bfloat16", steps=6, log_every=6, cache_latents=cached, **training)
    if model in ("simflow", "sit"):
        values["alignment"] = {"encoder": "toy", "layer": 1, "weight": 0.5, "cache": True, "mode": "repa"}
    return values


CASES = [(model, cached) for model in ("simflow", "starflow", "sit", "dit") for cached in (False, True)]
CASES.remove(("simflow", True))  # an encoder that trains has no moments to cache


@pytest.mark.parametrize(("model", "cached"), CASES)
def test_steps_between_two_logged_ones_do_not_wait(model, cached, waits_are_errors, tmp_path, monkeypatch):
    monkeypatch.setenv("SIMFLOW_DATA", str(tmp_path / "data"))
    trainer = trainer_on_cuda(values_with(model, cached), tmp_path / "run")
    batches = iter(trainer._loader())
    for _ in range(2):  # the first makes the optimizer's state, the second the discriminator's
        trainer._train_step(batches)
        trainer.step += 1
    with waits_are_errors, counted() as counts:
        trainer._train_step(batches)
    torch.cuda.synchronize()
    if IS_NULL:
        assert counts.waits == 0
        assert counts.unpinned == 0
        assert counts.to_device > 0


def test_jacobi_iteration_waits_once_a_pass():
    flow = build_flow(torch.float32, num_classes=3).cuda()
    noise = torch.zeros(2, flow.config.num_tokens, flow.config.token_dim, device="cuda")
    labels = torch.zeros(2, dtype=torch.int64, device="cuda")
    method = {"name": "jacobi", "segment": 3, "max_iterations": 2}
    flow.inverse(noise, labels, method=method)
    with counted() as counts:
        _, statistics = flow.inverse(noise, labels, method=method, return_statistics=True)
    if IS_NULL:
        passes = sum(sum(block.iterations) for block in statistics.blocks)
        assert counts.to_host == passes
        assert counts.unpinned == 0
