"""The `config.json` of a diffusers AutoencoderKL: found beside a weights file, and its normalisation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simflow_plugin.errors import WeightsError

CLASS_NAME = "AutoencoderKL"
DEFAULT_SCALE = 0.18215
"""`scaling_factor` of an AutoencoderKL whose config.json, by an early version of diffusers, does not state it."""


def config_beside(path: Path) -> dict[str, Any] | None:
    """Return the `config.json` beside a weights file if it is of an AutoencoderKL, else None.

    Raises:
        WeightsError: if it is torn.
    """
    file = path.with_name("config.json")
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{file}: cannot be read, perhaps torn: {error}. It stands beside {path.name} and would state the scale "
            "of its latents; mend or remove it"
        ) from error
    is_autoencoder = isinstance(config, dict) and config.get("_class_name") == CLASS_NAME
    return config if is_autoencoder else None  # the configuration of something else in the same folder


def config_statistics(config: Mapping[str, Any], source: str) -> tuple[Tensor, Tensor]:
    """Return (shift, scale) such that diffusers' pipelines compute latents = (raw - shift) * scale.

    With `latents_mean` and `latents_std` that is (raw - mean) * scaling_factor / std, else
    (raw - shift_factor) * scaling_factor.

    Raises:
        WeightsError: if a value is no number.
    """
    try:
        scale = torch.tensor(float(config.get("scaling_factor", DEFAULT_SCALE) or 1.0))
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and std is not None:
            return torch.tensor(mean).flatten(), scale / torch.tensor(std).flatten()
        return torch.tensor(float(config.get("shift_factor") or 0.0)), scale
    except (TypeError, ValueError) as error:
        raise WeightsError(
            f"{source}: scaling_factor, shift_factor, latents_mean and latents_std: expected numbers, found "
            f"something else ({error})"
        ) from error


def normalization_config(shift: list[float], scale: list[float]) -> dict[str, Any]:
    """Return the values of `config.json` by which diffusers' pipelines compute (raw - shift) * scale, by channel."""
    if len(set(shift)) == len(set(scale)) == 1:
        return {"scaling_factor": scale[0], "shift_factor": shift[0] if shift[0] else None}
    return {"scaling_factor": 1.0, "latents_mean": shift, "latents_std": [1 / value for value in scale]}
