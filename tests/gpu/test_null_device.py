"""The tests of `tests/gpu/cuda` on the null CUDA device, in processes of their own."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.gpu import null_device

FOLDER = Path(__file__).parent / "cuda"
READS_NUMBERS = ("test_runs.py", "test_processes.py")
"""Files whose runs read numbers that no kernel wrote: they get memory that is zero."""
pytestmark = [
    pytest.mark.timeout(660),  # a whole file in one test
    pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu/cuda runs on the real device itself"),
    pytest.mark.skipif(null_device.why_not() is not None, reason=str(null_device.why_not())),
]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return the folder of the null device's libraries."""
    folder = tmp_path_factory.mktemp("null_cuda")
    null_device.build(folder)
    return folder


def sessions():
    """Return (file, compute capability) of every session; the choice of attention depends on the capability."""
    files = sorted(path.name for path in FOLDER.glob("test_*.py"))
    without = pytest.mark.skipif(find_spec("xformers") is None, reason="xformers is not installed")
    for file in files:
        if file != "test_xformers.py":
            yield pytest.param(file, 90, id=file)
    for capability in (80, 90, 100):
        yield pytest.param("test_xformers.py", capability, id=f"test_xformers.py-{capability}", marks=without)


@pytest.mark.parametrize(("file", "capability"), sessions())
def test_file_passes_on_null_device(file, capability, built):
    fresh = file in READS_NUMBERS
    result = null_device.run_tests(
        built, str(FOLDER / file), capability=capability, devices=2, reuses_memory=not fresh
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout
    assert "no CUDA device" not in result.stdout
