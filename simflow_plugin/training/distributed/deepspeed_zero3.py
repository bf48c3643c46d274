"""DeepSpeed ZeRO 3: parameters are shards too, and whole only while their own layer runs.

A shard is a flat piece of one parameter, ceil(numel / processes) numbers, the last ones filled up; averages (EMA) are
kept as such pieces. DeepSpeed makes a layer whole again for one backward pass only, so an objective that goes back
through the model twice is refused; the adaptive weight of the adversarial loss, which asks for the gradient of the
decoder's last layer only, is not.

Reference: ZeRO, arXiv:1910.02054.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, distributed, nn

from simflow_plugin.config.schema import RunConfig
from simflow_plugin.errors import ConfigError
from simflow_plugin.objective import JointObjective
from simflow_plugin.runs.module_state import check_architecture
from simflow_plugin.training.distributed.deepspeed import DeepSpeedEngine
from simflow_plugin.training.ema import running_statistics, trained_parameters


class Zero3Engine(DeepSpeedEngine):
    """ZeRO 3 through accelerate.

    Args:
        accelerator: configured for DeepSpeed.
        config: resolved.
    Raises:
        ConfigError: naming the version or the setting that does not fit.
    """

    def __init__(self, accelerator: Accelerator, config: RunConfig) -> None:
        super().__init__(accelerator, config)
        self._has_features = config.alignment is not None

    @property
    def is_sharded(self) -> bool:
        return True

    def prepare(self, joint: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Let DeepSpeed shard the parameters.

        Raises:
            ConfigError: if the objective takes gradients within `forward`.
        """
        if isinstance(joint, JointObjective) and joint.needs_inner_gradient(self._has_features):
            raise ConfigError(
                "alignment: as configured it takes a gradient within the forward pass, and DeepSpeed ZeRO 3 gathers "
                "parameters for one backward pass only. Use configs/accelerate/fsdp2_zero3.yaml or "
                "deepspeed_zero2.yaml."
            )
        self._shapes = {name: tensor.shape for name, tensor in joint.state_dict().items()}
        return super().prepare(joint, optimizer)

    def averaged(self) -> dict[str, Tensor]:
        """Return this process's shards, and the running statistics, which are whole on all."""
        return {**self._shards(), **running_statistics(self.joint)}

    def _shards(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_local_fp32_param

        return {name: safe_get_local_fp32_param(p) for name, p in trained_parameters(self.joint).items()}

    def gathered(self, state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Gather one after the other."""
        whole = running_statistics(self.joint)
        for name, shard in state.items():
            if name in whole:
                yield name, shard
                continue
            shape = self._shapes[name]
            pieces = [torch.empty_like(shard) for _ in range(self.accelerator.num_processes)]
            distributed.all_gather(pieces, shard.contiguous())
            yield name, torch.cat(pieces)[: shape.numel()].view(shape)

    def scattered(self, whole: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cut this process's pieces."""
        pieces = {name: self._cut(whole[name], shard) for name, shard in self._shards().items()}
        statistics = running_statistics(self.joint)
        return pieces | {
            name: whole[name].to(held.device) for name, held in statistics.items() if name in whole
        }

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Gather frozen and trained parameters one after the other."""
        for name, tensor in self.joint.state_dict(keep_vars=True).items():
            with _made_whole(tensor):
                whole = tensor.detach().clone()
            yield name, whole

    def restore_weights(self, tensors: dict[str, Tensor], source: Path) -> None:
        """Copy into the module, gathered parameter by parameter, and into DeepSpeed's own copy."""
        from deepspeed.utils import safe_set_local_fp32_param

        check_architecture(self._shapes, tensors, source)
        for name, tensor in self.joint.state_dict(keep_vars=True).items():
            with _made_whole(tensor, modifier_rank=0), torch.no_grad():
                tensor.copy_(tensors[name])
        shards = self.scattered(tensors)
        for name, parameter in trained_parameters(self.joint).items():
            safe_set_local_fp32_param(parameter, shards[name])

    def _set_moment(self, name: str, parameter: Tensor, whole: Tensor, key: str) -> None:
        from deepspeed.utils import safe_get_local_fp32_param, safe_set_local_optimizer_state

        safe_set_local_optimizer_state(parameter, self._cut(whole, safe_get_local_fp32_param(parameter)), key)

    def _flat(self) -> list[Tensor]:
        return self.wrapped.optimizer.fp32_partitioned_groups_flat  # type: ignore[union-attr, return-value]

    def _link(self) -> None:
        """Nothing: DeepSpeed 3 looks state up by the flat piece."""

    def _cut(self, whole: Tensor, shard: Tensor) -> Tensor:
        """Return this process's piece of a whole tensor, filled up with zeros to the size of `shard`."""
        flat = whole.to(shard).flatten()
        size, start = shard.numel(), shard.numel() * self.accelerator.process_index
        piece = flat[start : start + size]
        return torch.cat([piece, piece.new_zeros(size - piece.numel())])


def _made_whole(tensor: Tensor, modifier_rank: int | None = None) -> AbstractContextManager[Any]:
    """Within the block a sharded parameter is whole; what is no shard, a buffer say, is left alone."""
    from deepspeed import zero

    return zero.GatheredParameters([tensor], modifier_rank) if hasattr(tensor, "ds_id") else nullcontext()
