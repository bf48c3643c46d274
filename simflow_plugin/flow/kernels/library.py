"""Compilation of decode.cpp at first use, and its functions through ctypes: no build step, no ABI of torch.

The library lies in the user's cache folder under a name made of its source, compiler and processor, so that another
version, or another machine on the same home directory, builds its own.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from simflow_plugin.files import replacing, text_digest

SOURCE = Path(__file__).with_name("decode.cpp")
HEADERS = ("parts.h", "vectors.h", "kernels.h")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")
BUILD_SECONDS = 300
"""A compiler that takes longer is stuck."""

Pointer = ctypes.c_void_p
Int = ctypes.c_int64

logger = logging.getLogger(__name__)


class LinearMap(ctypes.Structure):
    """Mirrors parts.h, as do the other structures."""

    _fields_ = (("weight", Pointer), ("bias", Pointer), ("inputs", Int), ("outputs", Int))


class Norm(ctypes.Structure):
    """`Norm` of parts.h: a layer or RMS norm, or none."""

    _fields_ = (("weight", Pointer), ("bias", Pointer), ("kind", Int), ("eps", ctypes.c_double))


class Modulation(ctypes.Structure):
    """`Modulation` of parts.h: adaLN's vectors, or none."""

    _fields_ = (("shift", Pointer), ("scale", Pointer), ("gate", Pointer))


class LayerParts(ctypes.Structure):
    """`LayerParts` of parts.h: weights and cache of one layer, by address."""

    _fields_ = (
        *((name, LinearMap) for name in ("qkv", "proj", "up", "value", "down")),
        *((name, Norm) for name in ("attention_norm", "attention_post_norm", "mlp_norm", "mlp_post_norm")),
        *((name, Modulation) for name in ("attention_modulation", "mlp_modulation")),
        *((name, Pointer) for name in ("query_scale", "key_scale", "keys", "values")),
    )


class BlockParts(ctypes.Structure):
    """`BlockParts` of parts.h: the sizes of a block, and its layers."""

    _fields_ = (
        *(
            (name, Int)
            for name in (
                "rows",
                "width",
                "query_heads",
                "key_heads",
                "head_dim",
                "is_gated",
                "activation",
                "capacity",
                "num_layers",
                "num_threads",
            )
        ),
        ("qk_eps", ctypes.c_double),
        ("layers", ctypes.POINTER(LayerParts)),
        ("in_", LinearMap),
        ("out", LinearMap),
        ("final_norm", Norm),
        *((name, Pointer) for name in ("rotation", "positions", "added", "scratch")),
    )


class DecodeLibrary:
    """The functions of the compiled library.

    Args:
        path: of the shared object.
    Raises:
        OSError: if it cannot be loaded.
    """

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        sizes = ctypes.sizeof(BlockParts) * 1_000_000 + ctypes.sizeof(LayerParts)
        if _function(library.simflow_sizes_of_parts, Int)() != sizes:
            raise OSError(f"{path}: its structures are not those of library.py")
        self.panel = _function(library.simflow_panel, Int)()
        self.row_unit = _function(library.simflow_row_unit, Int)()
        block = ctypes.POINTER(BlockParts)
        self.scratch_size = _function(library.simflow_scratch_size, Int, block)
        self.decode = _function(library.simflow_decode, None, block, Pointer, Int, Int, Pointer)


@functools.cache
def find_library() -> DecodeLibrary | None:
    """Return the library, built now if it has to be; None without a compiler, with one line that says why."""
    if sys.platform != "linux":
        logger.info("decode kernel: built on Linux only; sampling on the CPU uses torch alone")
        return None
    try:
        compiler = _compiler()
        if compiler is None:
            logger.info(
                "decode kernel: no C++ compiler found (CXX, c++, g++); sampling on the CPU uses torch alone"
            )
            return None
        path = _cache_folder() / f"decode-{_key(compiler)}.so"
        if not path.is_file():
            logger.info("decode kernel: compiling once into %s", path)
            _build(compiler, path)
        return DecodeLibrary(path)
    except (
        OSError,
        RuntimeError,
        ValueError,
        subprocess.SubprocessError,
    ) as error:  # no home, a malformed CXX, ...
        reason = getattr(error, "stderr", None) or str(error)
        logger.warning(
            "decode kernel: not available, sampling on the CPU uses torch alone: %s", reason.strip()
        )
        return None


def _function(
    function: ctypes._NamedFuncPointer, result: type | None, *arguments: type
) -> ctypes._NamedFuncPointer:
    function.restype, function.argtypes = result, arguments
    return function


def _compiler() -> list[str] | None:
    """Return the command that compiles C++, or None."""
    candidates = [shlex.split(os.environ.get("CXX", "")), ["c++"], ["g++"]]
    return next((command for command in candidates if command and shutil.which(command[0])), None)


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "simflow_plugin"


def _key(compiler: list[str]) -> str:
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout
    source = "".join(SOURCE.with_name(name).read_text() for name in (SOURCE.name, *HEADERS))
    parts = (source, " ".join(FLAGS), " ".join(compiler), version, _processor())
    return text_digest("\0".join(parts))


def _processor() -> str:
    """Return what `-march=native` depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    features = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
    return "\n".join([platform.machine(), platform.processor(), *dict.fromkeys(features)])


def _build(compiler: list[str], path: Path) -> None:
    """Compile; processes that build at the same time do not see half a file."""
    with replacing(path) as part:
        command = [*compiler, *FLAGS, str(SOURCE), "-o", str(part)]
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=BUILD_SECONDS)
