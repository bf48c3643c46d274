"""Module and optimizer state as unsharded named tensors, independent of the number of processes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simflow_plugin.errors import CheckpointError
from simflow_plugin.weights import fitted_state


def whole_tensors(state: Iterable[tuple[str, Tensor]], keeps: bool = True) -> dict[str, Tensor]:
    """Gather sharded tensors (FSDP2) on the host, one after the other; every process must call it.

    Args:
        state: names and tensors, the same names in the same order on every process; may be made one by one.
        keeps: whether this process wants the result; the others get {} and hold one gathered tensor at a time.
    """
    whole = {}
    for name, tensor in state:
        gathered = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        if keeps:
            whole[name] = gathered.detach().cpu()
    return whole


def optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as `<parameter name>/<key>` -> tensor, as it is sharded.

    Learning rates are not part of it: they are a function of the step and the configuration.
    """
    return {
        f"{name}/{key}": value
        for name, parameter in module.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def restore_module(module: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Copy tensors into a module of the same architecture.

    Raises:
        CheckpointError: naming the file and the keys that differ.
    """
    own = module.state_dict()
    fitting = fitted_state(own, tensors, str(source), error=CheckpointError)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(place_like(tensor, fitting[name]))


def restore_optimizer(
    module: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], source: Path
) -> None:
    """Restore what `optimizer_state` returned, unsharded.

    Raises:
        CheckpointError: if it names a parameter that the module lacks.
    """
    parameters = dict(module.named_parameters())
    for name, tensor in tensors.items():
        parameter_name, _, key = name.rpartition("/")
        parameter = parameters.get(parameter_name)
        if parameter is None:
            raise CheckpointError(f"{source}: optimizer state of an unknown parameter `{parameter_name}`.")
        optimizer.state[parameter][key] = place_like(parameter, tensor)


def place_like(target: Tensor, whole: Tensor) -> Tensor:
    """Return an unsharded tensor on the device of `target`, sharded as `target` is."""
    whole = whole.to(target.device)
    mesh: Any = getattr(target, "device_mesh", None)
    if mesh is None or whole.ndim == 0:
        return whole.clone()
    from torch.distributed.tensor import distribute_tensor  # imported here: only sharded runs need it

    return distribute_tensor(whole, mesh, target.placements)  # type: ignore[attr-defined]
