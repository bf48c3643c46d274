"""Tests that need CUDA: a real device, or the null one, on which `tests/gpu/test_null_device.py` runs them."""

import warnings
from pathlib import Path

import pytest
import torch

from tests.gpu.cuda.counting import IS_NULL


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device; tests/gpu/test_null_device.py runs it on the null one")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _no_checks_of_values(monkeypatch):
    """On the null device nothing may read what no kernel wrote; cuDNN, which is not stood in for, is off."""
    if not IS_NULL:
        return
    for name in ("check_tokens", "check_labels", "check_condition"):
        monkeypatch.setattr(f"simflow_plugin.flow.flow.{name}", lambda *arguments: None)
    monkeypatch.setattr("simflow_plugin.training.stability.BadSteps.check", lambda *arguments: None)
    monkeypatch.setattr(torch.backends.cudnn, "enabled", False)
    torch.backends.cuda.enable_cudnn_sdp(False)


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    """Accelerate keeps the precision of the first run of a process."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def waits_are_errors():
    """Return a context in which an operation that waits for the device raises RuntimeError."""

    class WaitsAreErrors:
        def __enter__(self):
            with warnings.catch_warnings():  # torch calls the mode a prototype
                warnings.simplefilter("ignore")
                torch.cuda.set_sync_debug_mode("error")

        def __exit__(self, *exception):
            torch.cuda.set_sync_debug_mode("default")

    return WaitsAreErrors()
