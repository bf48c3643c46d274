"""Checkpoints, manifests and logs of a run that goes on."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from tools.attack.damage import flip_bit, largest, rewrite
from tools.attack.target import TINY, Attack, Target, verdict


def _drop(tensors: dict[str, torch.Tensor]) -> None:
    tensors.pop(largest(tensors))


def _other_shape(tensors: dict[str, torch.Tensor]) -> None:
    tensors[largest(tensors)] = torch.zeros(3)


def _broadcastable(tensors: dict[str, torch.Tensor]) -> None:
    name = largest(tensors)
    tensors[name] = tensors[name][:1].clone()


def _not_finite(tensors: dict[str, torch.Tensor]) -> None:
    tensors[largest(tensors)].view(-1)[0] = float("nan")


def _integers(tensors: dict[str, torch.Tensor]) -> None:
    name = largest(tensors)
    tensors[name] = tensors[name].to(torch.int8)


def _surplus(tensors: dict[str, torch.Tensor]) -> None:
    tensors["surplus"] = torch.zeros(2)


def attack_checkpoints(target: Target, rng: random.Random) -> Attack:
    """A run that goes on from a checkpoint whose tensors, files, manifest or log were changed."""
    resume = [*TINY, "--set", "training.steps=3", "--no-report", "--allow-changed", "training.steps"]

    def resumed(name: str, damage: Callable[[Path, Path], None], refused: bool) -> tuple[str, str | None]:
        run = target.work / "damaged run"
        shutil.copytree(target.run, run)
        damage(run, sorted((run / "checkpoints").glob("step_*"))[-1])
        status, text = target.simflow("train", *resume, "--out", run)
        shutil.rmtree(run)
        wrong = verdict(status, text)
        return name, wrong or (
            "trained on it in silence" if refused and status == 0 and "skipp" not in text else None
        )

    yield resumed("undamaged", lambda run, checkpoint: None, refused=False)
    changes = (_drop, _other_shape, _broadcastable, _not_finite, _integers, _surplus)
    for file in ("joint", "ema", "optimizer"):
        for change in changes:
            yield resumed(
                f"{file}: {change.__name__.strip('_').replace('_', ' ')}",
                lambda run, checkpoint, file=file, change=change: rewrite(
                    checkpoint, f"{file}.safetensors", change
                ),
                refused=True,
            )
    for name in ("joint.safetensors", "optimizer.safetensors", "state.json", "manifest.json"):
        yield resumed(f"{name}: empty", lambda run, c, name=name: (c / name).write_bytes(b""), refused=True)
        yield resumed(f"{name}: cut", lambda run, c, name=name: os.truncate(c / name, 40), refused=True)
        yield resumed(
            f"{name}: flipped bit", lambda run, c, name=name: flip_bit(c / name, rng), refused=False
        )
    deep = "[" * 100_000 + "]" * 100_000
    for content in (
        "[]",
        "null",
        deep,
        '{"a": 1}',
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    ):
        yield resumed(
            f"manifest: {content[:12]!r}",
            lambda run, c, x=content: _put(c / "manifest.json", x),
            refused=True,
        )
        yield resumed(
            f"log: {content[:12]!r}",
            lambda run, c, x=content: _append(run / "metrics.jsonl", x),
            refused=False,
        )

    def pipe(run: Path, checkpoint: Path) -> None:
        (checkpoint / "manifest.json").unlink()
        os.mkfifo(checkpoint / "manifest.json")

    yield resumed("manifest: FIFO", pipe, refused=True)


def _put(path: Path, content: str) -> None:
    path.write_text(content)


def _append(path: Path, content: str) -> None:
    with path.open("ab") as file:
        file.write(b"\xff\xfe" + content.encode() + b"\n")
