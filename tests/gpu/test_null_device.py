"""The tests of `tests/gpu/cuda` on the null CUDA device, in processes of their own."""

from pathlib import Path

import pytest
import torch

from tests.gpu import null_device

FOLDER = Path(__file__).parent / "cuda"
pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu/cuda runs on the real device itself"),
    pytest.mark.skipif(null_device.why_not() is not None, reason=str(null_device.why_not())),
]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return the folder of the null device's libraries."""
    folder = tmp_path_factory.mktemp("null_cuda")
    null_device.build(folder)
    return folder


@pytest.mark.parametrize("file", sorted(path.name for path in FOLDER.glob("test_*.py")))
def test_file_passes_on_null_device(file, built):
    result = null_device.run_tests(built, str(FOLDER / file), devices=2)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout
    assert "no CUDA device" not in result.stdout
