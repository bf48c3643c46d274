"""Tests that need CUDA: a real device, or the null one, on which `tests/gpu/test_null_device.py` runs them."""

import warnings
from pathlib import Path

import pytest
import torch

from tests.gpu.cuda.counting import IS_NULL, read_no_values


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device; tests/gpu/test_null_device.py runs it on the null one")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _no_checks_of_values(monkeypatch):
    if IS_NULL:
        read_no_values(monkeypatch)


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
