"""apple/ml-starflow's own code, from a checkout, on the same weights as ours."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from simflow_plugin.bench.workload import TimedModel, Workload, make_optimizer
from simflow_plugin.convert import from_ml_starflow
from simflow_plugin.errors import ConfigError
from simflow_plugin.flow import FlowConfig, TransformerFlow


class StarflowPeer(TimedModel):
    """The peer's model of the same architecture.

    Args:
        folder: a checkout of apple/ml-starflow.
        config: of our flow, with a condition of one token; of the `starflow` family and on a square grid.
    Raises:
        ConfigError: if the folder is no checkout, or the peer has no such flow.
    """

    def __init__(self, folder: Path, config: FlowConfig) -> None:
        self._arguments = constructor_arguments(config)
        self.model = import_checkout(folder).Model(**self._arguments).train()
        self._grid = config.grid_size

    def converted(self) -> TransformerFlow:
        """Return our flow with the peer's weights."""
        return from_ml_starflow(self.model.state_dict(), self._arguments)

    @torch.no_grad()
    def follow(self, workload: Workload) -> None:
        """Take the output projections of a workload's flow, the only weights it changed; run on its data."""
        for theirs, ours in zip(self.model.blocks, workload.blocks, strict=True):
            theirs.proj_out.weight.copy_(ours.proj_out.weight)
            theirs.proj_out.bias.copy_(ours.proj_out.bias)
        self.model.to(workload.setting.device)
        self._optimizer = make_optimizer(self.model)
        self._workload = workload

    @torch.no_grad()
    def sample(self, guidance: float, jacobi: bool) -> tuple[Tensor, None]:
        """Return tokens (B, T, D), by the peer's cached sampler or by its Jacobi iteration as it ships.

        The second value stands for statistics, which the peer has none of.
        """
        workload = self._workload
        features = workload.condition["condition"]
        if guidance:
            features = torch.cat([features, workload.null_condition["null_condition"]])
        with workload.autocast():
            images = self.model(
                self._images(workload.noise), features, reverse=True, guidance=guidance, jacobi=jacobi
            )
        return images.flatten(2).transpose(1, 2), None

    def loss(self) -> Tensor:
        """Return the peer's loss of the workload's tokens."""
        workload = self._workload
        with workload.autocast():
            noise, _, _, logdets = self.model(self._images(workload.tokens), workload.condition["condition"])
        return self.model.get_loss(noise, logdets)["loss"]

    def _images(self, tokens: Tensor) -> Tensor:
        return tokens.transpose(1, 2).unflatten(2, self._grid)


def constructor_arguments(config: FlowConfig) -> dict[str, Any]:
    """Return the peer's constructor arguments for a flow of the `starflow` family with its defaults.

    Raises:
        ConfigError: if the peer has no such flow.
    """
    own = {"size", "width", "layers_per_block", "head_dim", "token_dim", "grid_size", "condition_dim"}
    plain = FlowConfig.model_validate({"family": "starflow", **config.model_dump(include=own)})
    if plain != config or config.condition_dim is None or config.grid_size[0] != config.grid_size[1]:
        raise ConfigError(
            "--compare-ml-starflow: needs a flow of the starflow family with its defaults, on a square grid; change "
            "width, layers, head_dim, tokens and token_dim only"
        )
    return {
        "in_channels": config.token_dim,
        "img_size": config.grid_size[0],
        "patch_size": 1,
        "channels": config.width,
        "num_blocks": config.num_blocks,
        "layers_per_block": list(config.layers_per_block),
        "head_dim": config.head_dim,
        "rope": True,
        "sos": True,
        "txt_size": 1,
        "txt_dim": config.condition_dim,
        "cond_top_only": True,
        "use_softplus": True,
        "use_final_norm": True,
    }


def import_checkout(folder: Path) -> ModuleType:
    """Return the checkout's `transformer_flow`; its modules stay out of `sys.path` and under no name of their own.

    Raises:
        ConfigError: if the folder is no checkout, or a package it needs is missing.
    """
    if not (folder / "transformer_flow.py").is_file():
        raise ConfigError(
            f"--compare-ml-starflow: {folder} has no transformer_flow.py; name a checkout of ml-starflow"
        )
    own = ("transformer_flow", "misc")
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in own}
    sys.path.insert(0, str(folder.resolve()))
    try:
        return importlib.import_module("transformer_flow")
    except ImportError as error:
        raise ConfigError(
            f"--compare-ml-starflow: {folder} does not import: {error}; install what it needs"
        ) from error
    finally:
        sys.path.remove(str(folder.resolve()))
        for name in [name for name in sys.modules if name.split(".")[0] in own]:
            del sys.modules[name]
        sys.modules.update(hidden)


@contextmanager
def process_group() -> Iterator[None]:
    """Within the block there is a process group of one: the peer's Jacobi iteration asks all processes."""
    if torch.distributed.is_initialized():
        yield
        return
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
