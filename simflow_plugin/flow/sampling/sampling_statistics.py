"""Statistics of a sampling run: per block, the method, the passes it took and the residual it ended with."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class BlockStatistics:
    """One block of a sampling run.

    Args:
        block: counted from 1 in training order.
        method: the method that ran; for `auto`, the one it picked.
        passes: network evaluations, whatever their length in tokens.
        steps: positions evaluated over all passes; T for `cached`.
        iterations: of each Jacobi segment, in generation order.
        residual: largest accepted change of a token in its last iteration; 0 for an exact method.
        reason: why `auto` picked it.
    """

    block: int
    method: str
    passes: int = 0
    steps: int = 0
    iterations: list[int] = field(default_factory=list)
    residual: float = 0.0
    reason: str = ""

    def __str__(self) -> str:
        text = f"block {self.block}: {self.method}, {self.passes} passes, {self.steps} positions"
        if self.iterations:
            text += f", iterations {self.iterations}, residual {self.residual:.1e}"
        return f"{text} ({self.reason})" if self.reason else text


@dataclass
class SamplingStatistics:
    """All blocks of a sampling run, in the order they ran: the deep block first."""

    blocks: list[BlockStatistics] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(str(block) for block in self.blocks)
