"""AdamW over the trained parts, its schedule, and a step that skips itself when gradients are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from simflow_plugin.config.schema import Optimizer as OptimizerConfig


def parameter_groups(parts: dict[str, nn.Module], config: OptimizerConfig) -> list[dict]:
    """Group the trained parameters by part and by whether they are decayed.

    Weights of linear maps and convolutions are decayed; norms, biases, embeddings, start tokens and every other
    parameter are not.
    """
    groups = []
    for name, part in parts.items():
        lr = (
            config.autoencoder_lr
            if name == "autoencoder" and config.autoencoder_lr is not None
            else config.lr
        )
        maps = {id(m.weight) for m in part.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))}
        trained = [p for p in part.parameters() if p.requires_grad]
        decayed = [p for p in trained if id(p) in maps]
        plain = [p for p in trained if id(p) not in maps]
        for params, decay in ((decayed, config.weight_decay), (plain, 0.0)):
            if params:
                groups.append(
                    {"params": params, "part": name, "lr": lr, "base_lr": lr, "weight_decay": decay}
                )
    return groups


def make_optimizer(groups: list[dict], config: OptimizerConfig, device: torch.device) -> torch.optim.AdamW:
    """Build AdamW; the fused kernel (CPU and CUDA) can skip a step on the device, without a synchronisation."""
    fused = device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)


def learning_rate_ratio(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Return the schedule's factor in [0, 1] for optimizer step `step` (from 0)."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.final_lr_ratio + (1 - config.final_lr_ratio) * cosine


def set_learning_rate(optimizer: torch.optim.Optimizer, ratio: float) -> None:
    """Scale every group's base learning rate by `ratio`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * ratio


def learning_rates(optimizer: torch.optim.Optimizer, default: str) -> dict[str, float]:
    """Return the learning rate of each part as `lr_<part>`; the groups of a part differ in weight decay only."""
    return {f"lr_{group.get('part', default)}": float(group["lr"]) for group in optimizer.param_groups}


@dataclass(frozen=True)
class Clipping:
    """A bound on the norm of gradients.

    Args:
        max_norm: of the gradient; None bounds nothing.
        scope: `per_part` bounds the norm of each part alone, `global` that of all parts together.
    """

    max_norm: float | None
    scope: Literal["per_part", "global"] = "per_part"


@dataclass(frozen=True)
class StepOutcome:
    """Outcome of one optimizer step; scalar tensors on the device, not read by the step itself.

    Args:
        norms: before clipping, `grad_norm` of all parts together and `grad_norm_<part>` of each.
        finite: whether every gradient was; the step was taken only then.
        zero: part -> whether every one of its gradients was exactly zero.
    """

    norms: dict[str, Tensor]
    finite: Tensor
    zero: dict[str, Tensor] = field(default_factory=dict)


def clip_and_check(
    parameters_by_part: Mapping[str, Iterable[nn.Parameter]], clipping: Clipping
) -> StepOutcome:
    """Clip gradients by their norm and look at them, on the device."""
    moving = {part: [p for p in ps if p.grad is not None] for part, ps in parameters_by_part.items()}
    norm_by_part = {part: _norm(parameters) for part, parameters in moving.items() if parameters}
    if not norm_by_part:
        nothing = torch.tensor(True)
        return StepOutcome({}, nothing, dict.fromkeys(moving, nothing))
    total = torch.linalg.vector_norm(torch.stack(list(norm_by_part.values())))
    # By the sum of magnitudes: squares underflow where gradients are tiny, and an empty shard has no largest element.
    zero = {
        part: _norm(parameters, 1.0) == 0 if parameters else torch.ones_like(total, dtype=torch.bool)
        for part, parameters in moving.items()
    }
    if clipping.max_norm is not None:
        for part, norm in norm_by_part.items():
            bounded = norm if clipping.scope == "per_part" else total
            nn.utils.clip_grads_with_norm_(moving[part], clipping.max_norm, bounded)
    norms = {f"grad_norm_{part}": norm.detach() for part, norm in norm_by_part.items()}
    return StepOutcome({"grad_norm": total.detach(), **norms}, torch.isfinite(total), zero)


def parameters_by_part(optimizer: torch.optim.Optimizer, default: str) -> dict[str, list[nn.Parameter]]:
    """Return the parameters of an optimizer by the part that `parameter_groups` put them under."""
    found: dict[str, list[nn.Parameter]] = {}
    for group in optimizer.param_groups:
        found.setdefault(group.get("part", default), []).extend(group["params"])
    return found


def _norm(parameters: list[nn.Parameter], norm_type: float = 2.0) -> Tensor:
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients, norm_type)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # FSDP2: gradients are sharded


def step_if_finite(optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
    """Take the step unless `finite` is false; the fused optimizer decides on the device."""
    if optimizer.param_groups[0].get("fused"):
        optimizer.grad_scale = None  # type: ignore[attr-defined]
        optimizer.found_inf = (~finite).to(torch.float32)  # type: ignore[attr-defined]
        optimizer.step()
    elif bool(finite):
        optimizer.step()


def scale_loss(loss: Tensor, scaler: Any) -> Tensor:
    """Return `loss` as the backward pass wants it; `scaler` is the gradient scaler of float16, or None."""
    return loss if scaler is None else scaler.scale(loss)


def clip_and_step(optimizer: torch.optim.Optimizer, clipping: Clipping, scaler: Any) -> StepOutcome:
    """Clip, step unless a gradient is not finite, and clear the gradients."""
    if scaler is not None:
        scaler.unscale_(optimizer)
    outcome = clip_and_check(parameters_by_part(optimizer, default="discriminator"), clipping)
    if scaler is not None:
        scaler.step(optimizer)
    else:
        step_if_finite(optimizer, outcome.finite)
    optimizer.zero_grad(set_to_none=True)
    return outcome
