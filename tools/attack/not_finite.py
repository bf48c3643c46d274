"""Networks with a number that is none."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import torch

from tools.attack.damage import largest, rewrite
from tools.attack.target import Attack, Target, verdict


def attack_numbers(target: Target, rng: random.Random) -> Attack:
    """Networks with a value that is not finite, used by the commands that read them."""
    out = target.work / "from not finite"
    for command in _commands(target.run, out):
        yield f"undamaged: {command[0]}", verdict(*target.simflow(*command), allowed=(0,))
    shutil.rmtree(out)
    for value in (float("nan"), float("inf")):
        for part in ("model", "autoencoder"):
            run = target.work / "not finite"
            shutil.copytree(target.run, run)
            checkpoint = sorted((run / "checkpoints").glob("step_*"))[-1]

            def spoil(tensors: dict[str, torch.Tensor], part: str = part, value: float = value) -> None:
                names = {
                    name: tensor
                    for name, tensor in tensors.items()
                    if part in name and name.endswith("weight")
                }
                tensors[largest(names or tensors)].view(-1)[0] = value

            for file in ("joint.safetensors", "ema.safetensors"):
                rewrite(checkpoint, file, spoil)
            for command in _commands(run, out):
                status, text = target.simflow(*command)
                yield f"{value} in {part}: {command[0]}", verdict(status, text, allowed=(3,))
            shutil.rmtree(run)
            shutil.rmtree(out, ignore_errors=True)


def _commands(run: Path, out: Path) -> tuple[tuple[str | Path, ...], ...]:
    return (
        ("sample", run, "--num", "4", "--out", out / "samples"),
        ("evaluate", run, "--only", "likelihood", "--num-held-out", "4"),
        ("export", run, "--out", out / "exported"),
    )
