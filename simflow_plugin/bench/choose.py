"""Benchmark setting from command-line options, with errors that name the option."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError

from simflow_plugin.bench.options import FlowOptions, MeasuringOptions
from simflow_plugin.bench.setting import BenchSetting
from simflow_plugin.convert.arguments import describe
from simflow_plugin.errors import ConfigError
from simflow_plugin.flow import FlowConfig

NUM_CLASSES = 1000
QUICK_FLOW: dict[str, Any] = {"size": None, "width": 32, "layers": "1,2", "head_dim": 16, "tokens": 16}


def make_setting(
    flow: FlowOptions, measuring: MeasuringOptions, peer: Path | None, is_quick: bool
) -> BenchSetting:
    """Return what to measure.

    Args:
        peer: a checkout of apple/ml-starflow, or None.
        is_quick: replace the flow by a tiny one and time everything once.
    Raises:
        ConfigError: for a value that is unknown, malformed, or that this machine cannot run.
    """
    if is_quick:
        usual = FlowOptions()
        changed = [n for n in ("family", *QUICK_FLOW) if getattr(flow, n) != getattr(usual, n)]
        if changed:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in changed)
            raise ConfigError(f"--quick measures a fixed tiny flow: leave out {options}, or --quick")
        flow, measuring = replace(flow, **QUICK_FLOW), replace(measuring, rounds=1)
    device = _device(measuring.device)
    if measuring.cpu_time and device.type != "cpu":
        raise ConfigError("--cpu-time: means nothing for work on a GPU; leave it out, or use --device cpu")
    # On CUDA `cached` is captured as a graph: what that gains is seen beside the steps launched one by one.
    eager = ({"name": "cached", "step": "eager"},) if device.type == "cuda" else ()
    return BenchSetting(
        _flow_config(flow, has_labels=peer is None),
        batch_size=flow.batch,
        guidance=measuring.guidance,
        clock="cpu" if measuring.cpu_time else "wall",
        rounds=measuring.rounds,
        methods=tuple(map(_method, measuring.method or ())) or (*BenchSetting.methods, *eager),
        device=device,
        autocast=None if measuring.dtype == "float32" else getattr(torch, measuring.dtype),
        runs_naive=measuring.naive,
        log_scale_std=flow.log_scale_std,
        seed=measuring.seed,
        gemm_size=256 if is_quick else (8192 if device.type == "cuda" else 2048),
        peer=peer,
    )


def _flow_config(flow: FlowOptions, has_labels: bool) -> FlowConfig:
    side = math.isqrt(flow.tokens)
    if side**2 != flow.tokens:
        raise ConfigError(
            f"--tokens: {flow.tokens} is not a square number; try {side**2} or {(side + 1) ** 2}"
        )
    values = {
        "family": flow.family,
        "size": flow.size,
        "width": flow.width,
        "head_dim": flow.head_dim,
        "layers_per_block": None if flow.layers is None else _layers(flow.layers),
        "token_dim": flow.token_dim,
        "grid_size": (side, side),
        # The peer has no labels: a condition of one token takes their place there, with the same arithmetic.
        **({"num_classes": NUM_CLASSES} if has_labels else {"condition_dim": flow.width or 384}),
    }
    try:
        return FlowConfig.model_validate({key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        raise ConfigError(f"simflow bench: {describe(error)}") from error


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
