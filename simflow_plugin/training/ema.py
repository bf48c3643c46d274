"""Moving averages of the trained parameters, and of the running statistics of batch norms that train."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from simflow_plugin.config.average_options import Average, PowerAverage
from simflow_plugin.runs.power_averages import average_files, exponent_of_length, power_decay

DecayAt = Callable[[int], float]
"""The decay of an average at an optimizer step, counted from 0."""


def exponential_decay(decay: float, has_warmup: bool = True) -> DecayAt:
    """Return a constant decay in [0, 1), with warm-up min(decay, (1 + step) / (10 + step)).

    The warm-up lets the average forget the random initialisation; it lasts for 9 / (1 - decay) steps.
    """
    return lambda step: min(decay, (1 + step) / (10 + step)) if has_warmup else decay


class MovingAverage:
    """average <- decay * average + (1 - decay) * parameter, once per optimizer step, in float32.

    Frozen parameters are not averaged: they do not move. Other buffers are not averaged either; who loads a checkpoint
    takes them from the module's own state.

    Args:
        tensors: of `averaged_tensors`, or this process's shards of them; not held, passed to `update` instead. Those
            that are left out here are left out for good.
        decay_at: of a step.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay_at: DecayAt) -> None:
        self._decay_at = decay_at
        self.average = {name: tensor.detach().clone().float() for name, tensor in tensors.items()}

    @torch.no_grad()
    def update(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Move the average towards `tensors` after optimizer step `step` (from 0)."""
        decay = self._decay_at(step)
        by_kind: dict[type, list[tuple[Tensor, Tensor]]] = {}
        for name, average in self.average.items():
            by_kind.setdefault(type(average), []).append((average, tensors[name].detach().float()))
        for pairs in by_kind.values():  # shards and whole tensors do not go into one call
            averages, current = map(list, zip(*pairs, strict=True))
            torch._foreach_lerp_(averages, current, 1 - decay)

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Put the averaged weights into the unsharded `module`, in eval mode, for the block."""
        was_training = {name: m.training for name, m in module.named_modules()}
        tensors = {name: t for name, t in averaged_tensors(module).items() if name in self.average}
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

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Replace the averages; names and shapes are those of `average`."""
        for name, average in self.average.items():
            average.copy_(state[name])


class WeightAverages:
    """The averages that a run keeps, by the name of their file in a checkpoint.

    Args:
        tensors: as for `MovingAverage`.
        options: `training.ema` of the configuration.
        includes_autoencoder: where the options leave that open.
    """

    def __init__(self, tensors: Mapping[str, Tensor], options: Average, includes_autoencoder: bool) -> None:
        if options.includes_autoencoder is not None:
            includes_autoencoder = options.includes_autoencoder
        averaged = {
            name: tensor
            for name, tensor in tensors.items()
            if includes_autoencoder or not name.startswith("autoencoder.")
        }
        decay_by_file: dict[str, DecayAt]
        if isinstance(options, PowerAverage):
            exponents = {name: exponent_of_length(length) for name, length in average_files(options).items()}
            decay_by_file = {name: partial(power_decay, exponent) for name, exponent in exponents.items()}
        else:
            decay_by_file = {"ema": exponential_decay(options.decay, options.warmup)}
        self.by_file = {name: MovingAverage(averaged, decay_at) for name, decay_at in decay_by_file.items()}

    @property
    def main(self) -> MovingAverage:
        """The average that sample grids and reports show."""
        return self.by_file["ema"]

    def update(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Move every average towards `tensors` after optimizer step `step` (from 0)."""
        for average in self.by_file.values():
            average.update(tensors, step)


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
