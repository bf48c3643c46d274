"""Findings of `simflow doctor`: devices, packages, data sets and weights that training can use."""

from __future__ import annotations

import importlib.util
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from simflow_plugin import registry
from simflow_plugin.errors import SimflowError
from simflow_plugin.units import with_prefix

OPTIONAL_PACKAGES = {
    "xformers": "attention on GPUs; without it torch's scaled-dot-product attention serves",
    "wandb": "tracker: wandb; without it metrics.jsonl and report.html hold everything",
    "tensorboard": "tracker: tensorboard",
    "webdataset": "tar shards as data",
    "datasets": "Hugging Face data sets as data",
    "pillow_heif": "HEIC images in data sets of files",
}


class Finding(NamedTuple):
    """One line of the diagnosis."""

    what: str
    found: str
    meaning: str


def diagnose() -> list[Finding]:
    """Return the findings; never raises for something that is merely missing."""
    return [
        *_machine(),
        *_packages(),
        _attention(),
        _decode_kernel(),
        _frechet(),
        _fashion_mnist(),
        *_parts(),
    ]


def _machine() -> list[Finding]:
    import torch

    python = f"{platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    if not torch.cuda.is_available():
        return [
            Finding("Python", python, ""),
            Finding(
                "GPU", "none", "training runs on the CPU in float32; good for small images and for trying"
            ),
        ]
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    precision = "bfloat16" if has_bfloat16 else "float32 (float16 with loss scaling on request)"
    return [Finding("Python", python, ""), Finding("GPU", names, f"precision auto means {precision}")]


def _packages() -> list[Finding]:
    findings = []
    for name, meaning in OPTIONAL_PACKAGES.items():
        installed = importlib.util.find_spec(name) is not None
        findings.append(Finding(name, metadata.version(name) if installed else "not installed", meaning))
    return findings


def _attention() -> Finding:
    from simflow_plugin.flow.attention import AttentionContext
    from simflow_plugin.flow.attention.backend_choice import why_not_xformers

    reason = why_not_xformers(AttentionContext(64))
    picked = "sdpa (torch's own)" if reason else "xformers"
    return Finding("attention: auto", f"picks {picked}", reason or "its build works on this CUDA device")


def _decode_kernel() -> Finding:
    from simflow_plugin.flow.kernels.library import KernelNotAvailable, load_library

    try:
        library = load_library()
    except KernelNotAvailable as reason:
        meaning = (
            f"{reason}; without it sampling on the CPU takes two to three times as long. It needs Linux and a C++ "
            "compiler (g++)"
        )
        return Finding("decode kernel", "not available", meaning)
    meaning = (
        f"sampling a flow on the CPU is fast; {library.path}: SHA-256 verified, folder and file yours alone"
    )
    return Finding("decode kernel", "compiled for this processor", meaning)


def _frechet() -> Finding:
    from simflow_plugin.evaluation.fidelity import check_frechet

    found, expected, is_right = check_frechet()
    if is_right:
        return Finding("Fréchet distance", f"{found:.6f}", f"closed form {expected:.6f}: FIDs are right here")
    meaning = (
        f"closed form {expected:.6f}: every FID measured here is WRONG. Reinstall numpy and scipy from one source (pip "
        "or conda, not both), or try another BLAS; OMP_NUM_THREADS=1 tells whether threads are to blame"
    )
    return Finding("Fréchet distance", f"{found:.6f}", meaning)


def _fashion_mnist() -> Finding:
    from simflow_plugin.data.fashion_mnist import find_fashion_mnist

    try:
        return Finding(
            "Fashion-MNIST", str(find_fashion_mnist(None, download=False)), "data: fashion-mnist works"
        )
    except SimflowError as error:
        return Finding("Fashion-MNIST", "not found", str(error))


def _parts() -> list[Finding]:
    registries = (
        registry.MODELS,
        registry.AUTOENCODERS,
        registry.POSTERIORS,
        registry.ENCODERS,
        registry.DATASETS,
    )
    from torch.hub import get_dir

    from simflow_plugin.data.disk_cache import cache_folder

    findings = [Finding(r.kind, ", ".join(r.names()), f"entry-point group {r.group}") for r in registries]
    hub = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    caches = (
        ("cache: hub", hub, "weights and data sets by name; set by $HF_HOME"),
        ("cache: torch", Path(get_dir()), "weights of LPIPS and Inception; set by $TORCH_HOME"),
        ("cache: data", cache_folder(), "features, indices, fetched shards; set by $SIMFLOW_DATA"),
    )
    return [*findings, *(Finding(what, f"{f}{_size(f)}", meaning) for what, f, meaning in caches)]


def _size(folder: Path) -> str:
    """Return how much a cache holds."""
    if not folder.is_dir():
        return " (empty)"
    held = sum(f.lstat().st_size for f in folder.rglob("*") if f.is_file() and not f.is_symlink())
    return f" ({with_prefix(held, 'B')})"
