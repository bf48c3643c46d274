"""Benchmark workload: a flow with random non-trivial weights, its training step and its samplers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from simflow_plugin.bench.setting import BenchSetting
from simflow_plugin.diffusion.transformer import BackboneOptions
from simflow_plugin.flow import TransformerFlow, standard_normal_log_prob, unpatchify
from simflow_plugin.flow.affine import affine_parameters
from simflow_plugin.flow.block import FlowBlock
from simflow_plugin.flow.rope import rotation_table
from simflow_plugin.learned_inverse.student import InverseStudent, default_sizes
from simflow_plugin.randomness import named_generator


class TimedModel(ABC):
    """A model with an optimizer, whose training step is timed."""

    _optimizer: torch.optim.Optimizer

    @abstractmethod
    def loss(self) -> Tensor:
        """Return the loss of one batch, a scalar."""

    def training_step(self) -> None:
        """Run one step: forward, backward, optimiser."""
        self._optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        self._optimizer.step()

    def gradients(self) -> None:
        """Run forward and backward on gradients that are already allocated."""
        self._optimizer.zero_grad(set_to_none=False)
        self.loss().backward()


class Workload(TimedModel):
    """A flow with tokens, noise and conditions to run it on.

    Args:
        flow: with the configuration of `setting`; its output projections are drawn anew.
    """

    def __init__(self, setting: BenchSetting, flow: TransformerFlow) -> None:
        self.setting = setting
        self.flow = flow.to(setting.device)
        config = flow.config
        shape = (setting.batch_size, config.num_tokens, config.token_dim)
        self.tokens = self._draw("tokens", shape)
        self.noise = self._draw("noise", shape)
        if config.condition_dim is not None:
            features = self._draw("features", (2, setting.batch_size, 1, config.condition_dim))
            self.condition: dict[str, Any] = {"condition": features[0]}
            self.null_condition: dict[str, Any] = {"null_condition": features[1]}
        else:
            assert config.num_classes is not None
            labels = torch.arange(setting.batch_size, device=setting.device) % config.num_classes
            self.condition, self.null_condition = {"labels": labels}, {}
        self._spread_scales()
        self._optimizer = make_optimizer(flow)

    @property
    def blocks(self) -> list[FlowBlock]:
        """All blocks, in training order."""
        return [*self.flow.shallow_blocks, self.flow.deep_block]

    def loss(self) -> Tensor:
        """Return the mean negative log-likelihood per dimension, nats."""
        with self.autocast():
            output = self.flow(self.tokens, **self.condition)
        return -(standard_normal_log_prob(output.noise) + output.logdet).mean() / self.tokens[0].numel()

    def sample(self, method: Any, guidance: float) -> tuple[Tensor, Any]:
        """Return tokens (B, T, D) and sampling statistics."""
        guided: dict[str, Any] = {"guidance": guidance, **self.null_condition} if guidance else {}
        with self.autocast():
            return self.flow.inverse(
                self.noise, **self.condition, **guided, method=method, return_statistics=True
            )

    def student(self) -> Callable[[float], Tensor]:
        """Return a student of default sizes with random weights: from a guidance weight to its latents, in one pass."""
        config = self.flow.config
        options = BackboneOptions.model_validate(default_sizes(config))
        latents = unpatchify(self.noise, config.grid_size, config.patch_size)
        _, channels, height, width = latents.shape
        student = InverseStudent(options, (channels, height, width), config).to(self.setting.device).eval()

        def invert(guidance: float) -> Tensor:
            weights = torch.full((len(latents),), guidance, device=latents.device)
            with torch.inference_mode(), self.autocast():
                return student.invert(latents, self.condition["labels"], weights).latents

        return invert

    def autocast(self) -> AbstractContextManager[Any]:
        dtype = self.setting.autocast
        return torch.autocast(self.setting.device.type, dtype=dtype, enabled=dtype is not None)

    def _draw(self, purpose: str, shape: tuple[int, ...]) -> Tensor:
        generator = named_generator(self.setting.seed, f"bench/{purpose}", 0)
        return torch.randn(shape, generator=generator).to(self.setting.device)

    @torch.no_grad()
    def _spread_scales(self) -> None:
        """Draw each block's output projection, and size it so that its log-scales have the spread wanted."""
        tokens = self.tokens
        for index, block in enumerate(self.blocks):
            weight = block.proj_out.weight
            weight.copy_(self._draw(f"block {index}", tuple(weight.shape)) / math.sqrt(weight.shape[1]))
            outputs: list[Tensor] = []
            hook = block.proj_out.register_forward_hook(lambda _, __, out, seen=outputs: seen.append(out))
            for _ in range(3):  # log s is not linear in the weights
                outputs.clear()
                self._forward_block(index, tokens)
                spread = affine_parameters(outputs[0], self.flow.config).log_scale.std()
                if spread > 0:
                    weight.mul_(self.setting.log_scale_std / spread)
            hook.remove()
            tokens = self._forward_block(index, tokens)

    def _forward_block(self, index: int, tokens: Tensor) -> Tensor:
        """Return what block `index` makes of the tokens (B, T, D) that reach it."""
        rotation = rotation_table(self.flow.config, self.setting.prefix_length, tokens)
        rows = next(iter(self.condition.values()))
        return self.blocks[index](tokens, rows, rotation).noise


def make_optimizer(module: torch.nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser of a timed training step; small steps, so that weights stay what they are."""
    return torch.optim.AdamW(module.parameters(), lr=1e-7, fused=True)
