"""Compilation of decode.cpp at first use, and its functions through ctypes: no build step, no ABI of torch.

The library lies in a folder of the user's cache that only the user writes, under a name made of its source, compiler
and processor, so that another version, or another machine on the same home directory, builds its own. It is loaded
only where it matches the SHA-256 beside it, and built again where it does not.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import subprocess
import sys
from pathlib import Path

from simflow_plugin.flow.kernels.compiler import BUILD_SECONDS, build, build_key, find_compiler
from simflow_plugin.flow.kernels.verified_cache import (
    private_folder,
    remove_leftovers,
    user_cache_folder,
    why_not_verified,
    writing_alone,
)

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

    Raises:
        OSError: if it cannot be loaded, lacks a function, or has other structures.
    """

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        sizes = ctypes.sizeof(BlockParts) * 1_000_000 + ctypes.sizeof(LayerParts)
        block = ctypes.POINTER(BlockParts)
        self.path = path
        try:
            found = _function(library.simflow_sizes_of_parts, Int)()
            self.panel = _function(library.simflow_panel, Int)()
            self.row_unit = _function(library.simflow_row_unit, Int)()
            self.scratch_size = _function(library.simflow_scratch_size, Int, block)
            self.decode = _function(library.simflow_decode, None, block, Pointer, Int, Int, Pointer)
        except AttributeError as error:
            raise OSError(f"{path}: lacks a function: {error}") from error
        if found != sizes:
            raise OSError(f"{path}: its structures are not those of library.py")


class KernelNotAvailable(Exception):
    """Reason for which the compiled library cannot be used, in one line."""


@functools.cache
def find_library() -> DecodeLibrary | None:
    """Return the library, built now if it has to be; None, with the reason in the log, where it cannot be used."""
    try:
        return load_library()
    except KernelNotAvailable as reason:
        logger.warning("decode kernel: sampling on the CPU uses torch alone: %s", reason)
        return None


def load_library() -> DecodeLibrary:
    """Load the library after verifying it, or build it first.

    Raises:
        KernelNotAvailable: without Linux, a compiler, a folder that is the user's alone, or a library that loads.
    """
    if sys.platform != "linux":
        raise KernelNotAvailable("it is built on Linux only")
    try:
        compiler = find_compiler()
        if compiler is None:
            raise KernelNotAvailable("no C++ compiler found (CXX, c++, g++)")
        folder = private_folder(user_cache_folder("simflow_plugin"))
        path = folder / f"decode-{build_key(compiler)}.so"
        if why_not_verified(path) is not None:
            with writing_alone(folder, BUILD_SECONDS):
                _build_unless_verified(compiler, path)
        return DecodeLibrary(path)
    except (
        OSError,
        ValueError,
        subprocess.SubprocessError,
    ) as error:  # a read-only home, a malformed CXX, ...
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        raise KernelNotAvailable((lines or [type(error).__name__])[0][:300]) from error


def _build_unless_verified(compiler: list[str], path: Path) -> None:
    problem = why_not_verified(path)
    if problem is None:
        return  # another process built it meanwhile
    if path.exists():
        logger.warning("decode kernel: %s in %s; compiling again", problem, path.parent)
    else:
        logger.info("decode kernel: compiling once into %s", path)
    remove_leftovers(path.parent, BUILD_SECONDS)
    build(compiler, path)


def _function(
    function: ctypes._NamedFuncPointer, result: type | None, *arguments: type
) -> ctypes._NamedFuncPointer:
    function.restype, function.argtypes = result, arguments
    return function
