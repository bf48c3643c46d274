"""The C++ compiler of this machine: found, asked for its version, run with a time limit, no process left behind."""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from simflow_plugin.files import text_digest
from simflow_plugin.flow.kernels.verified_cache import storing

SOURCE = Path(__file__).with_name("decode.cpp")
HEADERS = ("parts.h", "vectors.h", "kernels.h")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")
BUILD_SECONDS = 300
"""A compiler that takes longer is stuck."""
VERSION_SECONDS = 10


def find_compiler() -> list[str] | None:
    """Return the command that compiles C++, or None."""
    candidates = [shlex.split(os.environ.get("CXX", "")), ["c++"], ["g++"]]
    return next((command for command in candidates if command and shutil.which(command[0])), None)


def build_key(compiler: list[str]) -> str:
    """Return a name for what this compiler makes of the source on this processor."""
    version = _run([*compiler, "--version"], VERSION_SECONDS)
    source = "".join(SOURCE.with_name(name).read_text() for name in (SOURCE.name, *HEADERS))
    return text_digest("\0".join((source, " ".join(FLAGS), " ".join(compiler), version, _processor())))


def build(compiler: list[str], path: Path) -> None:
    """Compile into `path`, with its digest beside it; the compiler's own files go when it has ended.

    Raises:
        OSError: if the disk is full, say.
        subprocess.SubprocessError: if it fails, or takes longer than BUILD_SECONDS.
    """
    with (
        tempfile.TemporaryDirectory(prefix="build-", dir=path.parent, ignore_cleanup_errors=True) as scratch,
        storing(path) as part,
    ):
        command = [*compiler, *FLAGS, str(SOURCE), "-o", str(part)]
        _run(command, BUILD_SECONDS, {"TMPDIR": scratch})


def _processor() -> str:
    """Return what `-march=native` depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    features = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
    return "\n".join([platform.machine(), platform.processor(), *dict.fromkeys(features)])


def _run(command: list[str], seconds: float, environment: dict[str, str] | None = None) -> str:
    """Return what a command prints; when it fails or its time is up, all that it started is killed."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
        text=True,
        errors="replace",
        start_new_session=True,  # a compiler is several processes
        env={**os.environ, **(environment or {})},
    ) as process:
        try:
            output, problems = process.communicate(timeout=seconds)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command[0], output, problems)
    return output
