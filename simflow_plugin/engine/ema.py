"""Exponential moving average of all trained parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class ExponentialMovingAverage:
    """ema <- decay * ema + (1 - decay) * parameter, once per optimizer step, in float32.

    Early in training the decay is min(decay, (1 + step) / (10 + step)), so that the average forgets the random
    initialisation. Frozen parameters are not averaged: they do not move. Buffers are not averaged either; who
    loads a checkpoint takes them from the module's own state.

    Args:
        parameters: the trained ones by name, or this process's shards of them; not held, passed to `update` instead.
        decay: in [0, 1).
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.average = {name: p.detach().clone().float() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor], step: int) -> None:
        """Move the average towards `parameters` after optimizer step `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages = [self.average[name] for name in parameters]
        current = [p.detach().float() for p in parameters.values()]
        torch._foreach_lerp_(averages, current, 1 - decay)

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Within the block `module`, whole, has the averaged weights and is in eval mode; then all is as before."""
        was_training = {name: m.training for name, m in module.named_modules()}
        saved: dict[str, Tensor] = {}
        with torch.no_grad():
            for name, parameter in trained_parameters(module).items():
                saved[name] = parameter.detach().clone()
                parameter.copy_(self.average[name])
        module.eval()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in trained_parameters(module).items():
                    parameter.copy_(saved[name])
            for name, submodule in module.named_modules():
                submodule.training = was_training[name]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages by parameter name."""
        return dict(self.average)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Replace the averages; names and shapes are those of `state_dict`."""
        for name, average in self.average.items():
            average.copy_(state[name])


def trained_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Return what is averaged, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}
