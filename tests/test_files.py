"""Files and folders appear whole or not at all, with the permissions that the umask gives, and say what went wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from simflow_plugin.errors import RunDirectoryError
from simflow_plugin.files import file_digest, filling, replacing, text_digest, write_text_atomically


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
from simflow_plugin.errors import DataError, RunDirectoryError
from simflow_plugin.files import filling, replacing
from tests.test_files import write_tensor
folder = Path(sys.argv[1])
try:
    with replacing(folder / "a.safetensors", DataError) as part:
        write_tensor(part)
except DataError as error:
    print(error)
try:
    with filling(folder / "folder") as part:
        write_tensor(part / "b.safetensors")
except RunDirectoryError as error:
    print(error)
"""
"""A limit on the size of files stands for a full disk: safetensors fails with an error of its own.

In a process of its own, since the limit also holds for the file that this one may print to.
"""


def write_tensor(path):
    save_file({"x": torch.zeros(1000)}, path)


def write_and_fail(path, failure):
    path.write_text("new")
    raise failure


def mode(path):
    return oct(path.stat().st_mode & 0o777)


def test_weights_may_be_read_by_whom_the_umask_lets(tmp_path, umask):
    with replacing(tmp_path / "a.safetensors") as part:
        write_tensor(part)
    with filling(tmp_path / "folder") as folder:
        write_tensor(folder / "b.safetensors")
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


@pytest.mark.parametrize("failure", [OSError("no"), KeyboardInterrupt()])
def test_failure_keeps_the_old_content_and_leaves_nothing_beside_it(tmp_path, failure):
    path = tmp_path / "a.txt"
    write_text_atomically(path, "old")
    with pytest.raises(type(failure)), replacing(path) as part:
        write_and_fail(part, failure)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.txt", "old")]


def test_folder_with_files_is_refused_before_the_work(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").touch()
    with pytest.raises(RunDirectoryError, match="is not empty"), filling(tmp_path / "folder"):
        pytest.fail("the block must not run")


def test_digests_are_those_of_the_content(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert text_digest("abc") == "d8bb14d833d59559"
