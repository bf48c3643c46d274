"""Module and optimizer state as plain named tensors, whole whatever the sharding, so that process counts may change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simflow_plugin.errors import CheckpointError


def whole_tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gather sharded tensors (FSDP2); every process must call it."""
    return {name: _whole(tensor) for name, tensor in state.items()}


def optimizer_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as `<parameter name>/<key>` -> tensor.

    Learning rates are not part of it: they are a function of the step and the configuration.
    """
    names = {id(p): name for name, p in module.named_parameters()}
    return {
        f"{names[id(parameter)]}/{key}": _whole(value)
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
        if isinstance(value, Tensor)
    }


def restore_module(module: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Copy tensors into a module of the same architecture.

    Raises:
        CheckpointError: naming the file and the keys that differ.
    """
    own = module.state_dict()
    missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    reshaped = [n for n in own.keys() & tensors.keys() if own[n].shape != tensors[n].shape]
    if missing or unknown or reshaped:
        raise CheckpointError(
            f"{source}: the weights are of another architecture: missing {missing[:3]}, unknown {unknown[:3]}, other "
            f"shape {sorted(reshaped)[:3]} (of {len(missing)}, {len(unknown)} and {len(reshaped)})."
        )
    with torch.no_grad():
        for name, tensor in own.items():
            _copy(tensor, tensors[name])


def restore_optimizer(
    module: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], source: Path
) -> None:
    """Put back what `optimizer_tensors` returned.

    Raises:
        CheckpointError: if it names a parameter that the module lacks.
    """
    parameters = dict(module.named_parameters())
    for name, tensor in tensors.items():
        parameter_name, _, key = name.rpartition("/")
        parameter = parameters.get(parameter_name)
        if parameter is None:
            raise CheckpointError(f"{source}: optimizer state of an unknown parameter `{parameter_name}`.")
        optimizer.state[parameter][key] = _like(parameter, tensor)


def _like(parameter: nn.Parameter, tensor: Tensor) -> Tensor:
    """Put a whole tensor where the parameter lives, sharded as it is."""
    if tensor.ndim == 0:
        return tensor.to(parameter.device)
    mesh: Any = getattr(parameter, "device_mesh", None)
    if mesh is None:
        return tensor.to(parameter.device).clone()
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(parameter.device), mesh, parameter.placements)  # type: ignore[attr-defined]


def _copy(target: Tensor, value: Tensor) -> None:
    mesh: Any = getattr(target, "device_mesh", None)
    if mesh is None:
        target.copy_(value)
        return
    from torch.distributed.tensor import distribute_tensor

    target.copy_(distribute_tensor(value.to(target.device), mesh, target.placements))  # type: ignore[attr-defined]


def _whole(tensor: Any) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.detach()
