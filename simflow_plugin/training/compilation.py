"""`training.compile`: torch.compile, layer by layer.

The repeated layers hold nearly all of the work, share one compiled graph, and contain neither draws (whose seeds change
every step, and would compile anew each time) nor gradients taken within the forward pass (where a graph would break).
"""

from __future__ import annotations

import torch
from torch import nn

from simflow_plugin.config.schema import Compilation
from simflow_plugin.errors import ConfigError
from simflow_plugin.objective import layer_class_names


def compile_layers(model: nn.Module | None, options: bool | Compilation) -> None:
    """Compile the innermost repeated layers of `model` in place; parameter names stay as they are.

    Raises:
        ConfigError: if there is nothing to compile.
    """
    if not options:
        return
    layers: list[nn.Module] = []
    if model is not None:
        names = layer_class_names(model)
        layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise ConfigError(
            "training.compile compiles the repeated layers of a model, and this run has none. Set it to false."
        )
    mode = options.mode if isinstance(options, Compilation) else "default"
    for layer in layers:
        layer.compile(mode=mode)


def begin_pass(options: bool | Compilation) -> None:
    """Say that a forward pass begins, so that what CUDA graphs of the pass before hold may be overwritten."""
    if options:
        torch.compiler.cudagraph_mark_step_begin()
