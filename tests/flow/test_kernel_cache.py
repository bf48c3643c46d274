"""The compiled library is loaded only from a folder and a file that are the user's, and as it was built."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from simflow_plugin import diagnosis
from simflow_plugin.flow.kernels import compiler, library, verified_cache

pytestmark = pytest.mark.skipif(
    library.find_library() is None, reason="no C++ compiler, or the kernel cannot be built"
)

FAKE = """#!/bin/sh
if [ "$1" = --version ]; then echo "fake 1.0"; exit 0; fi
echo built >> {count}
{before}
while [ "$1" != -o ]; do shift; done
cp {library} "$2"
"""


class FakeCompiler:
    """A compiler that is quick, since it copies the library that the real one made, and counts its calls."""

    def __init__(self, folder: Path) -> None:
        self.count, self.script = folder / "count", folder / "fakec++"
        self.write("")

    def write(self, before: str, source: Path | None = None) -> None:
        found = library.find_library()
        assert found is not None
        self.script.write_text(FAKE.format(count=self.count, before=before, library=source or found.path))
        self.script.chmod(0o755)

    @property
    def builds(self) -> int:
        return len(self.count.read_text().split()) if self.count.exists() else 0


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCompiler:
    made = FakeCompiler(tmp_path)
    monkeypatch.setenv("CXX", str(made.script))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return made


def cache_of(fake: FakeCompiler) -> Path:
    return fake.script.parent / "cache" / "simflow_plugin"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_library_is_built_once_and_nothing_else_is_left(fake: FakeCompiler) -> None:
    first, second = library.load_library(), library.load_library()
    assert first.path == second.path
    assert fake.builds == 1
    assert len(list(cache_of(fake).iterdir())) == 3  # the library, its digest, the lock


def damage(kind: str, path: Path) -> None:
    content = path.read_bytes()
    if kind in ("truncated", "flipped bit"):
        path.unlink()  # this process has mapped it
        path.touch(0o600)
    if kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "flipped bit":
        path.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    elif kind == "writable by others":
        path.chmod(0o666)
    elif kind == "link":
        path.rename(path.with_name("elsewhere"))
        path.symlink_to(path.with_name("elsewhere"))
    elif kind == "folder":
        path.unlink()
        (path / "below").mkdir(parents=True)
    else:
        digest = verified_cache.digest_file(path)
        digest.write_bytes(b"\xff" * 65) if kind == "other digest" else digest.unlink()


@pytest.mark.parametrize(
    "kind",
    ["truncated", "flipped bit", "writable by others", "link", "folder", "no digest", "other digest"],
)
def test_library_that_is_not_what_was_built_is_built_again(fake: FakeCompiler, kind: str) -> None:
    path = library.load_library().path
    damage(kind, path)
    assert verified_cache.why_not_verified(path) is not None
    assert library.load_library().path == path
    assert fake.builds == 2
    assert verified_cache.why_not_verified(path) is None


def test_folder_and_files_are_the_users_alone_whatever_the_umask(fake: FakeCompiler) -> None:
    cache_of(fake).mkdir(parents=True)
    cache_of(fake).chmod(0o777)
    before = os.umask(0)
    try:
        library.load_library()
    finally:
        os.umask(before)
    assert mode(cache_of(fake)) == 0o700
    assert {mode(path) for path in cache_of(fake).iterdir()} == {0o600}


@pytest.mark.parametrize("whose", ["file", "folder"])
def test_what_belongs_to_another_user_is_not_loaded(
    fake: FakeCompiler, whose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = library.load_library().path
    monkeypatch.setattr(verified_cache.os, "geteuid", lambda: os.getuid() + 1)
    if whose == "file":
        assert f"belongs to user {os.getuid()}" in (verified_cache.why_not_verified(path) or "")
    else:
        with pytest.raises(library.KernelNotAvailable, match=f"belongs to user {os.getuid()}"):
            library.load_library()


def test_folder_that_is_a_link_is_refused(fake: FakeCompiler, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    cache_of(fake).parent.mkdir()
    cache_of(fake).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(library.KernelNotAvailable, match="is a link"):
        library.load_library()
    assert fake.builds == 0


def test_relative_cache_home_is_ignored(
    fake: FakeCompiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert library.load_library().path.parent == tmp_path / "home" / ".cache" / "simflow_plugin"
    assert not (tmp_path / "cache").exists()


def test_two_at_once_compile_once(fake: FakeCompiler) -> None:
    fake.write("sleep 0.3")
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda _: library.load_library().path, range(2)))
    assert paths[0] == paths[1]
    assert fake.builds == 1


@pytest.mark.parametrize("kill", ["kill -9 $$", 'echo half > "$TMPDIR/a.s"; exit 1'])
def test_compiler_that_is_killed_leaves_nothing(fake: FakeCompiler, kill: str) -> None:
    fake.write(kill)
    with pytest.raises(library.KernelNotAvailable):
        library.load_library()
    assert [path.name for path in cache_of(fake).iterdir()] == [".lock"]


def test_what_killed_processes_left_is_removed_by_the_next(fake: FakeCompiler) -> None:
    folder = cache_of(fake)
    folder.mkdir(parents=True)
    (folder / "build-old").mkdir()
    for name in (".decode-0.so.1234.part", ".decode-0.so.5678.part"):
        (folder / name).touch()
    old = time.time() - 2 * compiler.BUILD_SECONDS
    for name in ("build-old", ".decode-0.so.1234.part"):
        os.utime(folder / name, (old, old))
    library.load_library()
    left = {path.name for path in folder.iterdir() if not path.name.startswith("decode")}
    assert left == {".lock", ".decode-0.so.5678.part"}  # the newer one may be another's at work


def test_hanging_compiler_is_ended_with_all_that_it_started(
    fake: FakeCompiler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake.script.write_text(f"#!/bin/sh\nsleep 600 &\necho $! > {tmp_path}/child\nwait\n")
    monkeypatch.setattr(compiler, "VERSION_SECONDS", 0.3)
    started = time.monotonic()
    with pytest.raises(library.KernelNotAvailable, match="timed out"):
        library.load_library()
    assert time.monotonic() - started < 30
    child = int((tmp_path / "child").read_text())
    while is_alive(child):  # killed, and gone once a busy machine has come round to it
        assert time.monotonic() - started < 60
        time.sleep(0.05)


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_library_without_a_function_falls_back_to_torch_in_one_line(
    fake: FakeCompiler, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, other = tmp_path / "other.c", tmp_path / "other.so"
    source.write_text("int simflow_other;\n")
    os.environ.pop("CXX")
    real = compiler.find_compiler()
    subprocess.run([*real, "-x", "c", "-shared", "-fPIC", str(source), "-o", str(other)], check=True)
    os.environ["CXX"] = str(fake.script)
    fake.write("", other)
    # A run before may have lowered it to INFO.
    with caplog.at_level(logging.WARNING, logger="simflow_plugin"):
        assert library.find_library.__wrapped__() is None
    (message,) = caplog.messages
    assert "torch alone" in message
    assert "lacks a function" in message
    assert "\n" not in message


def test_doctor_reports_the_checks(fake: FakeCompiler) -> None:
    assert "SHA-256 verified" in diagnosis._decode_kernel().meaning
    fake.write("exit 1")
    for path in cache_of(fake).glob("*.so"):
        path.unlink()
    assert diagnosis._decode_kernel().found == "not available"
