"""Memory foretold before training."""

import pytest
import torch

from simflow_plugin.planning import memory_forecast
from simflow_plugin.runs.parts import build_parts
from tests.training.tiny_runs import tiny_config

CPU = torch.device("cpu")


def foretold(monkeypatch, free):
    monkeypatch.setattr(memory_forecast, "free_memory", lambda device: free)
    config = tiny_config(batch_size=64)
    return memory_forecast.foretold_memory(config, build_parts(config, 10), CPU, 1)


def test_scarce_memory_is_foretold_with_a_remedy(monkeypatch):
    line = foretold(monkeypatch, 10**6)
    assert "WARNING" in line
    assert "training.accumulation=2" in line


@pytest.mark.parametrize("free", [None, 10**12])
def test_plenty_of_memory_or_an_unknown_amount_is_not_spoken_of(monkeypatch, free):
    assert foretold(monkeypatch, free) is None


def test_free_memory_of_this_machine_is_positive():
    assert memory_forecast.free_memory(CPU) is None or memory_forecast.free_memory(CPU) > 0


def test_limit_of_a_container_counts(tmp_path):
    (tmp_path / "max").write_text("1000\n")
    (tmp_path / "current").write_text("400\n")
    files = (str(tmp_path / "max"), str(tmp_path / "current"))
    assert memory_forecast._left_in_group(files) == 600
    (tmp_path / "max").write_text("max\n")
    assert memory_forecast._left_in_group(files) is None
