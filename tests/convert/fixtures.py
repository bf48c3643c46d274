"""The committed numbers of the peers: weights, inputs, outputs and the constructor arguments that go with them."""

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "fixtures"


def read_numbers(name: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Return the peer's constructor arguments, its state dict (float16), and inputs and outputs by name."""
    with safe_open(FOLDER / f"{name}.safetensors", framework="pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    weights = {key.removeprefix("peer."): value for key, value in tensors.items() if key.startswith("peer.")}
    return config, weights, {key: value for key, value in tensors.items() if not key.startswith("peer.")}
