"""Named randomness: every draw is a function of (seed, purpose, step or sample index), never of global state.

Two sources with one interface. `BatchRandom` serves training: a rank draws the rows of the *global* batch and
keeps its own, so that a resumed run repeats bit for bit and the number of processes does not matter.
`IndexedRandom` serves sampling and evaluation: each row has its own generator, so that sample 123 does not
depend on the batch size or the number of processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


def derive_seed(seed: int, *names: str | int) -> int:
    """Hash (seed, names...) to 63 bits; unlike `hash()`, equal in every process and Python version."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def named_generator(seed: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh generator for (seed, names...) on `device`."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *names))


class Random(Protocol):
    """A source of named draws. Asking twice for one purpose gives the same numbers twice."""

    def normal(self, purpose: str, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """Return standard normal float32 numbers of `shape`; the first axis is the batch."""
        ...

    def uniform(self, purpose: str, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """Return float32 numbers in [0, 1) of `shape`; the first axis is the batch."""
        ...


@dataclass(frozen=True)
class BatchRandom:
    """Draws for rows `offset : offset + B` of the global batch of one optimizer step.

    Args:
        seed: of the run.
        step: optimizer step, from 0.
        offset: the first row of this process's micro-batch in the global batch.
        global_batch_size: rows of the global batch, over all processes and accumulation steps.
    """

    seed: int
    step: int
    offset: int
    global_batch_size: int

    def normal(self, purpose: str, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        return self._draw(torch.randn, purpose, shape, device)

    def uniform(self, purpose: str, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        return self._draw(torch.rand, purpose, shape, device)

    def _draw(self, draw, purpose: str, shape: Sequence[int], device: torch.device | str) -> Tensor:
        generator = named_generator(self.seed, purpose, self.step, device=device)
        rows = draw((self.global_batch_size, *shape[1:]), generator=generator, device=device)
        return rows[self.offset : self.offset + shape[0]]


@dataclass(frozen=True)
class IndexedRandom:
    """Draws by sample index: row i of every draw depends on (seed, purpose, indices[i]) only.

    Drawn on the CPU, so that a sample is the same on every device.
    """

    seed: int
    indices: tuple[int, ...]

    def normal(self, purpose: str, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        return self._draw(torch.randn, purpose, shape, device)

    def uniform(self, purpose: str, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        return self._draw(torch.rand, purpose, shape, device)

    def _draw(self, draw, purpose: str, shape: Sequence[int], device: torch.device | str) -> Tensor:
        if shape[0] != len(self.indices):
            raise ValueError(
                f"asked for {shape[0]} rows of `{purpose}`, but there are {len(self.indices)} indices"
            )
        rows = [
            draw(tuple(shape[1:]), generator=named_generator(self.seed, purpose, i)) for i in self.indices
        ]
        return torch.stack(rows).to(device)
