"""Module and optimizer state as unsharded named tensors, independent of the number of processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simflow_plugin.errors import CheckpointError, NotFiniteError
from simflow_plugin.weights import fitted_state, listed, not_finite

ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")
"""State that Adam and AdamW keep of a parameter, from its first step on: a scalar, and two tensors of its shape."""


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


def fitting_tensors(
    expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str
) -> dict[str, Tensor]:
    """Return `tensors` by the names of `expected`, after comparing names, shapes, types and values.

    Raises:
        NotFiniteError: naming the tensors that hold NaN or infinity.
        CheckpointError: naming the tensors that differ.
    """
    broken = not_finite(tensors)
    if broken:
        raise NotFiniteError(
            f"{source}: {len(broken)} of {len(tensors)} tensors not finite (NaN or infinite): {listed(broken)}. "
            "Training diverged; name an earlier checkpoint."
        )
    fitting = fitted_state(expected, tensors, source, error=CheckpointError)
    mistyped = [
        f"{name} {found.dtype} instead of {expected[name].dtype}"
        for name, found in fitting.items()
        # Averages are float32, whatever the weights are.
        if found.dtype != expected[name].dtype
        and not (found.dtype == torch.float32 and expected[name].is_floating_point())
    ]
    if mistyped:
        raise CheckpointError(f"{source}: {len(mistyped)} tensors of another type: {listed(mistyped)}.")
    return fitting


def check_optimizer(
    module: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], source: str
) -> None:
    """Compare what `optimizer_state` returned with the parameters that the optimizer moves.

    The fused kernels trust the shapes: state of another one would be read beyond its end.

    Raises:
        NotFiniteError: naming the tensors that hold NaN or infinity.
        CheckpointError: for state of an unknown parameter, of another kind, shape or type, or an incomplete one.
    """
    moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
    parameters = {name: p for name, p in module.named_parameters() if id(p) in moved}
    owners = {name.rpartition("/")[0] for name in tensors}
    for owner in sorted(owners - parameters.keys()):
        raise CheckpointError(f"{source}: optimizer state of an unknown parameter `{owner}`.")
    like = {
        f"{owner}/{key}": torch.empty(() if key == "step" else parameters[owner].shape, device="meta")
        for owner in sorted(owners)
        for key in ADAM_STATE
    }
    fitting_tensors(like, tensors, source)


def restore_module(module: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Copy tensors into a module of the same architecture.

    Raises:
        CheckpointError: naming the file and the keys that differ.
    """
    own = module.state_dict()
    fitting = fitting_tensors(own, tensors, str(source))
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(place_like(tensor, fitting[name]))


def restore_optimizer(
    module: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """Restore what `optimizer_state` returned, unsharded, and `check_optimizer` has compared."""
    parameters = dict(module.named_parameters())
    for name, tensor in tensors.items():
        parameter_name, _, key = name.rpartition("/")
        parameter = parameters[parameter_name]
        optimizer.state[parameter][key] = place_like(parameter, tensor)


def place_like(target: Tensor, whole: Tensor) -> Tensor:
    """Return an unsharded tensor on the device of `target`, sharded as `target` is."""
    whole = whole.to(target.device)
    mesh: Any = getattr(target, "device_mesh", None)
    if mesh is None or whole.ndim == 0:
        return whole.clone()
    from torch.distributed.tensor import distribute_tensor  # imported here: only sharded runs need it

    return distribute_tensor(whole, mesh, target.placements)  # type: ignore[attr-defined]
