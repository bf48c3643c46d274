"""Benchmark setting from command-line options, with errors that name the option."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import ValidationError

from simflow_plugin.bench.setting import BenchSetting
from simflow_plugin.convert.arguments import describe
from simflow_plugin.errors import ConfigError
from simflow_plugin.flow import FlowConfig

NUM_CLASSES = 1000
QUICK_ARCHITECTURE = {"size": None, "width": 32, "layers": "1,2", "head_dim": 16}


@dataclass(frozen=True)
class Choice:
    """Options of `simflow bench` as they were typed; see there."""

    architecture: dict[str, Any]
    num_tokens: int
    token_dim: int
    batch_size: int
    guidance: float
    rounds: int
    methods: Sequence[str]
    runs_naive: bool | None
    device: str | None
    dtype: str
    seed: int
    clock: Literal["wall", "cpu"] = "wall"
    log_scale_std: float = 0.3


def make_setting(choice: Choice, peer: Path | None, is_quick: bool) -> BenchSetting:
    """Return what to measure.

    Args:
        choice: what was typed.
        peer: a checkout of apple/ml-starflow, or None.
        is_quick: replace the flow by a tiny one and time everything once.
    Raises:
        ConfigError: for a value that is unknown, malformed, or that this machine cannot run.
    """
    if is_quick:
        _check_quick(choice)
    device = _device(choice.device)
    if choice.clock == "cpu" and device.type != "cpu":
        raise ConfigError("--cpu-time: means nothing for work on a GPU; leave it out, or use --device cpu")
    side = 4 if is_quick else math.isqrt(choice.num_tokens)
    if not is_quick and side**2 != choice.num_tokens:
        raise ConfigError(
            f"--tokens: {choice.num_tokens} is not a square number; try {side**2} or {(side + 1) ** 2}"
        )
    values = {**choice.architecture, **(QUICK_ARCHITECTURE if is_quick else {})}
    layers = values.pop("layers")
    if layers is not None:
        values["layers_per_block"] = _layers(layers)
    # The peer has no labels: a condition of one token takes their place there, with the same arithmetic.
    condition = {"num_classes": NUM_CLASSES} if peer is None else {"condition_dim": values["width"] or 384}
    geometry = {"token_dim": choice.token_dim, "grid_size": (side, side)}
    given = {key: value for key, value in values.items() if value is not None}
    try:
        config = FlowConfig.model_validate({**given, **geometry, **condition})
    except ValidationError as error:
        raise ConfigError(f"simflow bench: {describe(error)}") from error
    # On CUDA `cached` is captured as a graph: what that gains is seen beside the steps launched one by one.
    eager = ({"name": "cached", "step": "eager"},) if device.type == "cuda" else ()
    default_methods = (*BenchSetting.methods, *eager)
    return BenchSetting(
        config,
        batch_size=choice.batch_size,
        guidance=choice.guidance,
        clock=choice.clock,
        rounds=1 if is_quick else choice.rounds,
        methods=tuple(map(_method, choice.methods)) or default_methods,
        device=device,
        autocast=None if choice.dtype == "float32" else getattr(torch, choice.dtype),
        runs_naive=choice.runs_naive,
        log_scale_std=choice.log_scale_std,
        seed=choice.seed,
        gemm_size=256 if is_quick else (8192 if device.type == "cuda" else 2048),
        peer=peer,
    )


def _check_quick(choice: Choice) -> None:
    """Refuse what the tiny flow of --quick would leave without effect."""
    sizes = {**choice.architecture, "tokens": choice.num_tokens}
    plain = {"family": choice.architecture["family"], "size": "S", "tokens": 256}
    changed = [f"--{name.replace('_', '-')}" for name, value in sizes.items() if value != plain.get(name)]
    if changed:
        raise ConfigError(f"--quick measures a fixed tiny flow: leave out {', '.join(changed)}, or --quick")


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device: `{name}` is no device; cpu, or cuda, or cuda:1") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device: `{name}` is not supported; cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device: torch finds no CUDA device on this machine; use cpu")
    return device


def _layers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--layers: found `{text}`, expected numbers such as 2,2,2,8") from error


def _method(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--method: `{text}` is not YAML; a name, or {{name: jacobi, segment: 16}}"
        ) from error
