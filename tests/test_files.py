"""Files and folders appear whole or not at all, with the permissions that the umask gives, and say what went wrong."""

import os
import resource

import pytest
import torch
from safetensors.torch import save_file

from simflow_plugin.data.disk_cache import write_atomically
from simflow_plugin.errors import DataError, RunDirectoryError
from simflow_plugin.files import write_new_folder


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.fixture
def small_files():
    """A limit on the size of files stands for a full disk: safetensors fails with an error of its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_tensor(path):
    save_file({"x": torch.zeros(1000)}, path)


def mode(path):
    return oct(path.stat().st_mode & 0o777)


def test_weights_may_be_read_by_whom_the_umask_lets(tmp_path, umask):
    write_atomically(tmp_path / "a.safetensors", write_tensor)
    write_new_folder(tmp_path / "folder", lambda folder: write_tensor(folder / "b.safetensors"))
    assert mode(tmp_path / "a.safetensors") == mode(tmp_path / "folder" / "b.safetensors") == "0o640"
    assert mode(tmp_path / "folder") == "0o750"


def test_disk_that_is_full_is_one_message_and_leaves_nothing(tmp_path, small_files):
    with pytest.raises(DataError, match=r"a\.safetensors: cannot be written"):
        write_atomically(tmp_path / "a.safetensors", write_tensor)
    with pytest.raises(RunDirectoryError, match="folder: cannot be written"):
        write_new_folder(tmp_path / "folder", lambda folder: write_tensor(folder / "b.safetensors"))
    assert list(tmp_path.iterdir()) == []
