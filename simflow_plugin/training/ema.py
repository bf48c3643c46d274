"""Exponential moving average of all trained parameters, and of the running statistics of batch norms that train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class ExponentialMovingAverage:
    """ema <- decay * ema + (1 - decay) * parameter, once per optimizer step, in float32.

    Early in training the decay is min(decay, (1 + step) / (10 + step)), so that the average forgets the random
    initialisation. Frozen parameters are not averaged: they do not move. Other buffers are not averaged either; who
    loads a checkpoint takes them from the module's own state.

    Args:
        tensors: of `averaged_tensors`, or this process's shards of them; not held, passed to `update` instead.
        decay: in [0, 1).
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.average = {name: tensor.detach().clone().float() for name, tensor in tensors.items()}

    @torch.no_grad()
    def update(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Move the average towards `tensors` after optimizer step `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        by_kind: dict[type, list[tuple[Tensor, Tensor]]] = {}
        for name, tensor in tensors.items():
            average = self.average[name]
            by_kind.setdefault(type(average), []).append((average, tensor.detach().float()))
        for pairs in by_kind.values():  # shards and unsharded tensors do not go into one call
            averages, current = map(list, zip(*pairs, strict=True))
            torch._foreach_lerp_(averages, current, 1 - decay)

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Put the averaged weights into the unsharded `module`, in eval mode, for the block."""
        was_training = {name: m.training for name, m in module.named_modules()}
        tensors = averaged_tensors(module)
        saved = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(self.average[name])
        module.eval()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in tensors.items():
                    tensor.copy_(saved[name])
            for name, submodule in module.named_modules():
                submodule.training = was_training[name]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages by name."""
        return dict(self.average)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Replace the averages; names and shapes are those of `state_dict`."""
        for name, average in self.average.items():
            average.copy_(state[name])


def trained_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that an optimizer moves, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def running_statistics(module: nn.Module) -> dict[str, Tensor]:
    """Return mean and variance of the batch norms that are in training mode, by name.

    Averaged weights go with averaged statistics (REPA-E normalises latents by them; its host averages them too).
    """
    norms = {n: m for n, m in module.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    return {
        f"{name}.{key}" if name else key: buffer
        for name, norm in norms.items()
        for key, buffer in (("running_mean", norm.running_mean), ("running_var", norm.running_var))
        if norm.training and buffer is not None
    }


def averaged_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return what is averaged, by name."""
    return {**trained_parameters(module), **running_statistics(module)}
