"""A CUDA device that does nothing, built from `null_cuda/`: torch takes its true CUDA paths on a machine without GPU.

    memory is host memory, copies are real, kernels and products are counted and not run

It takes the place, by LD_PRELOAD, of the functions of libcudart, cuBLAS and libcuda that torch calls. So waits for the
device, copies of unpinned memory, tensors on the wrong device, kernels outside a capture, growth of memory and numbers
of launches can be tested. Numbers cannot: what no kernel wrote is what lay in that memory before, and garbage that is
read as a size asks for gigabytes. Whole runs, which read numbers, get fresh memory instead, where it is zero. cuDNN is
off, and NCCL is not covered.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import torch

SOURCES = Path(__file__).parent / "null_cuda"
WRITTEN_FOR = "13"
"""Major version of CUDA whose functions, as torch calls them, are there."""

MOST_MEMORY_KIB = 14 * 2**20
"""Address space of a process of tests: what no kernel wrote is garbage, and a garbage size may ask for everything."""


def include_folders() -> list[Path] | None:
    """Return the folders that hold CUDA's headers: those of a toolkit, else those of PyPI's packages; None without.

    Those packages are `nvidia-cuda-runtime`, which torch brings along, and `nvidia-cuda-crt`.
    """
    toolkits = sorted(Path("/usr/local").glob("cuda*/include"), reverse=True)
    if "CUDA_HOME" in os.environ:
        toolkits.insert(0, Path(os.environ["CUDA_HOME"]) / "include")
    packages = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/**/include"))
    for folders in [*([folder] for folder in toolkits), packages]:
        runtime = [folder for folder in folders if _is_right_runtime(folder)]
        crt = [folder for folder in folders if (folder / "crt" / "host_defines.h").is_file()]
        if runtime and crt:
            return [*runtime, *crt]
    return None


def why_not() -> str | None:
    """Return why the null device cannot be had here, or None."""
    if platform.system() != "Linux":
        return "the null CUDA device needs LD_PRELOAD, hence Linux"
    if torch.version.cuda is None or torch.version.cuda.partition(".")[0] != WRITTEN_FOR:
        return f"the null CUDA device stands in for CUDA {WRITTEN_FOR}; this torch is built for {torch.version.cuda}"
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        return "no C compiler to build the null CUDA device with"
    if include_folders() is None:
        return f"no headers of CUDA {WRITTEN_FOR} (a toolkit, or pip install nvidia-cuda-runtime nvidia-cuda-crt)"
    return None


def build(folder: Path) -> None:
    """Compile the null device into `folder`."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    includes = [f"-I{path}" for path in include_folders() or ()]
    flags = ["-O1", "-shared", "-fPIC", "-w", *includes]
    runtime = [str(SOURCES / "runtime.c"), str(SOURCES / "blas.c"), "-o", str(folder / "libnull.so")]
    driver = ["-Wl,-soname,libcuda.so.1", str(SOURCES / "driver.c"), "-o", str(folder / "libcuda.so.1")]
    for files in (runtime, driver):
        subprocess.run([compiler, *flags, *files], check=True)


def environment(
    folder: Path, capability: int = 90, devices: int = 1, reuses_memory: bool = True
) -> dict[str, str]:
    """Return the environment of a process on the null device.

    Args:
        folder: of the device's libraries.
        capability: that it claims, ten times the version.
        devices: that there seem to be.
        reuses_memory: False gives every tensor memory of its own, fresh from the system and so zeros: what kernels
            would have written is then 0 or False, in every run the same. torch counts no memory then.
    """
    paths = [str(folder), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return {
        **os.environ,
        "LD_PRELOAD": str(folder / "libnull.so"),
        "LD_LIBRARY_PATH": ":".join(paths),
        "NULL_CUDA_CAPABILITY": str(capability),
        "NULL_CUDA_DEVICES": str(devices),
        "OMP_NUM_THREADS": "1",
        **({} if reuses_memory else {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}),
    }


def run_tests(folder: Path, *arguments: str, **device: Any) -> subprocess.CompletedProcess[str]:
    """Run pytest on the null device."""
    options = [
        "-o",
        "addopts=--strict-markers",
        "-o",
        "timeout=300",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-rs",
    ]
    command = [*limited(), sys.executable, "-m", "pytest", *options, *arguments]
    return subprocess.run(
        command, env=environment(folder, **device), text=True, capture_output=True, timeout=600, check=False
    )


def limited() -> list[str]:
    """Return what goes before a command to bound its address space."""
    return ["sh", "-c", f'ulimit -v {MOST_MEMORY_KIB} && exec "$0" "$@"']


def _is_right_runtime(folder: Path) -> bool:
    header = folder / "cuda_runtime_api.h"
    return header.is_file() and f"#define CUDART_VERSION  {WRITTEN_FOR}" in header.read_text(errors="replace")
