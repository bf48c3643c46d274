"""Files and folders appear whole or not at all, with the permissions that the umask gives, and say what went wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from simflow_plugin.data.disk_cache import write_atomically
from simflow_plugin.files import write_new_folder


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
from simflow_plugin.data.disk_cache import write_atomically
from simflow_plugin.errors import DataError, RunDirectoryError
from simflow_plugin.files import write_new_folder
from tests.test_files import write_tensor
folder = Path(sys.argv[1])
try:
    write_atomically(folder / "a.safetensors", write_tensor)
except DataError as error:
    print(error)
try:
    write_new_folder(folder / "folder", lambda folder: write_tensor(folder / "b.safetensors"))
except RunDirectoryError as error:
    print(error)
"""
"""A limit on the size of files stands for a full disk: safetensors fails with an error of its own.

In a process of its own, since the limit also holds for the file that this one may print to.
"""


def write_tensor(path):
    save_file({"x": torch.zeros(1000)}, path)


def mode(path):
    return oct(path.stat().st_mode & 0o777)


def test_weights_may_be_read_by_whom_the_umask_lets(tmp_path, umask):
    write_atomically(tmp_path / "a.safetensors", write_tensor)
    write_new_folder(tmp_path / "folder", lambda folder: write_tensor(folder / "b.safetensors"))
    assert mode(tmp_path / "a.safetensors") == mode(tmp_path / "folder" / "b.safetensors") == "0o640"
    assert mode(tmp_path / "folder") == "0o750"


def test_disk_that_is_full_is_one_message_and_leaves_nothing(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", ON_A_FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert "a.safetensors: cannot be written" in first
    assert "folder: cannot be written" in second
    assert list(tmp_path.iterdir()) == []
