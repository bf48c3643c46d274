"""Checkouts of the peers, imported side by side although their modules share names; weights worth comparing."""

import importlib
import os
import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

TOLERANCE = 1e-4


def load_peer(variable: str) -> ModuleType:
    """Return `transformer_flow` of the checkout that an environment variable names; skip the test without."""
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"{variable} is not set to a checkout")
    shared = ("transformer_flow", "misc")
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in shared}
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("transformer_flow")
    finally:
        sys.path.remove(folder)
        for name in [name for name in sys.modules if name.split(".")[0] in shared]:
            sys.modules[f"{variable}.{name}"] = sys.modules.pop(name)
        sys.modules.update(hidden)


def randomize(model: nn.Module, seed: int, std: float = 0.15) -> None:
    """Draw every parameter, so that no block is the identity and no norm or bias is at its initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.02 if "proj_out" in name else std / max(1.0, parameter.shape[-1] / 64) ** 0.5
            noise = torch.randn(parameter.shape, generator=generator) * spread
            is_norm = "norm" in name and name.endswith("weight")
            parameter.copy_(parameter + noise if is_norm else noise)


def largest(first: Tensor, second: Tensor) -> float:
    """Return the largest absolute difference; shapes must agree."""
    assert first.shape == second.shape
    assert bool(torch.isfinite(first).all())
    return float((first - second).abs().max())
