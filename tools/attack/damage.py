"""Changes of files and tensors that several groups make."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def flip_bit(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    position = rng.randrange(len(data))
    data[position] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def rewrite(checkpoint: Path, name: str, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change tensors of a file of a checkpoint, and its manifest so that the checksum holds."""
    path, manifest = checkpoint / name, checkpoint / "manifest.json"
    old = hashlib.sha256(path.read_bytes()).hexdigest()
    size = path.stat().st_size
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    text = manifest.read_text().replace(old, hashlib.sha256(path.read_bytes()).hexdigest())
    manifest.write_text(text.replace(f'"bytes": {size}', f'"bytes": {path.stat().st_size}'))


def largest(tensors: dict[str, torch.Tensor], suffix: str = "") -> str:
    return max((name for name in tensors if name.endswith(suffix)), key=lambda name: tensors[name].numel())
