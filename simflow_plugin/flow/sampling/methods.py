"""The sampling methods: their names and options, and the statistics of a run of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from simflow_plugin.errors import ConfigError
from simflow_plugin.options import Options, did_you_mean


class Naive(Options):
    """Run the block on the entire sequence for every token: the oracle that the others are tested against."""

    name: Literal["naive"] = "naive"


class Cached(Options):
    """One token after the other, over a KV cache."""

    name: Literal["cached"] = "cached"
    step: Literal["auto", "native", "eager", "static", "compiled", "cuda_graph"] = Field(
        "auto",
        description="How a step runs. `native` is a compiled kernel for a few rows in float32 on the CPU, `eager` is "
        "torch; `static` keeps all shapes fixed and reads all of the cache behind a mask; `compiled` is torch.compile "
        "of that, `cuda_graph` its capture (CUDA only), kept over calls. `auto` takes `cuda_graph` on CUDA, else "
        "`native` where it can run, else `eager`.",
    )
    compile_backend: str = Field("inductor", description="Of torch.compile, for `compiled`.")

    @model_validator(mode="after")
    def _backend_has_effect(self) -> Cached:
        if self.compile_backend != "inductor" and self.step != "compiled":
            raise ValueError(f"compile_backend has no effect with step: {self.step}; use step: compiled")
        return self


class Jacobi(Options):
    """Fixed-point iteration on segments of the sequence, one segment after the other.

    A token leaves the iteration when it and all before it change by at most `tolerance`. After k iterations
    the first k tokens of every segment are exact given the tokens emitted before it (with `tolerance` 0), so
    `max_iterations` >= `segment` is exact. Fewer cost one pass a segment more, which renews its keys.
    """

    name: Literal["jacobi"] = "jacobi"
    segment: int = Field(32, gt=0, description="Tokens that are iterated together.")
    tolerance: float = Field(
        1e-5,
        ge=0,
        description="Largest change of a token that counts as converged, relative to max(1, its size).",
    )
    max_iterations: int | None = Field(None, gt=0, description="Per segment; as many as tokens if null.")


class Auto(Options):
    """Iterate on the first segment of a block as long as that beats `cached`; go on with the cheaper of both."""

    name: Literal["auto"] = "auto"
    segment: int = Field(32, gt=0, description="Of the Jacobi iteration.")
    tolerance: float = Field(1e-5, ge=0, description="Of the Jacobi iteration.")
    patience: int = Field(2, gt=0, description="Passes before jacobi is given up.")


Method = Naive | Cached | Jacobi | Auto
METHODS: dict[str, type[Naive] | type[Cached] | type[Jacobi] | type[Auto]] = {
    "naive": Naive,
    "cached": Cached,
    "jacobi": Jacobi,
    "auto": Auto,
}


def parse_methods(method: Any, num_blocks: int) -> list[Method]:
    """Return the method of every block, in training order.

    Args:
        method: a name, a mapping with `name` and options, one of the classes above, or a list with one of
            these per block in training order.
        num_blocks: of the flow.

    Raises:
        ConfigError: for an unknown name or option, or a list of another length.
    """
    if isinstance(method, Sequence) and not isinstance(method, str):
        if len(method) != num_blocks:
            raise ConfigError(f"method: found a list of {len(method)}, but the flow has {num_blocks} blocks")
        return [_parse(one) for one in method]
    return [_parse(method)] * num_blocks


def _parse(method: Any) -> Method:
    if isinstance(method, Naive | Cached | Jacobi | Auto):
        return method
    values: dict[str, Any] = dict(method) if isinstance(method, Mapping) else {"name": method}
    name = values.get("name")
    if name not in METHODS:
        raise ConfigError(f"method: unknown `{name}`.{did_you_mean(str(name), METHODS)}")
    try:
        return METHODS[name](**values)
    except ValidationError as error:
        raise ConfigError(f"method: {error}") from error


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
