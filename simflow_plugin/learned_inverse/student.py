"""The student: a bidirectional transformer that maps the flow's noise to latents in one pass.

It is the adaLN transformer of the diffusion baselines with the guidance weight in the place of time, a residual
connection from noise to latents, and one linear projection per inner state of the teacher. The projections serve
training only: `hidden tokens -> teacher's tokens`, compared state by state, and left out of every sample.
Reference: BiFlow, arXiv:2512.10953 (hidden alignment).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from simflow_plugin.diffusion.transformer import AdaLNTransformer, BackboneOptions
from simflow_plugin.errors import ConfigError
from simflow_plugin.flow import FlowConfig, TransformerFlow

CHANNELS_PER_HEAD = 32
SMALLEST_WIDTH = 128
"""Below it a third of the teacher's parameters is too little to follow it, and one pass costs next to nothing."""


class StudentOutput(NamedTuple):
    """`latents` (B, C, h, w); `states`: (B, T, D) per inner state of the teacher, in generation order, or none."""

    latents: Tensor
    states: list[Tensor]


class InverseStudent(AdaLNTransformer):
    """G(u, y, w): noise on the latent grid, label and guidance weight to latents.

    Args:
        options: sizes; the patch size is the teacher's, so that tokens correspond.
        latent_shape: (C, h, w).
        teacher: configuration of the flow whose inverse is learned.
    Raises:
        ConfigError: if the patch sizes differ, or the student has fewer layers than the teacher has blocks.
    """

    def __init__(
        self, options: BackboneOptions, latent_shape: tuple[int, int, int], teacher: FlowConfig
    ) -> None:
        if options.patch_size != teacher.patch_size:
            raise ConfigError(
                f"model.student.patch_size: {options.patch_size}, but the teacher's tokens are patches of "
                f"{teacher.patch_size}. Use {teacher.patch_size}."
            )
        super().__init__(options, latent_shape, teacher.num_classes)
        self.state_layers = state_layers(options.dimensions[1], teacher.layers_per_block)
        self.projections = nn.ModuleList(nn.Linear(self.width, teacher.token_dim) for _ in self.state_layers)

    def invert(
        self, noise: Tensor, labels: Tensor | None, guidance: Tensor, with_states: bool = False
    ) -> StudentOutput:
        """Map noise to latents.

        Args:
            noise: (B, C, h, w), the flow's output laid onto the latent grid.
            labels: (B,) int64, `NO_LABEL` for unconditional rows; or None.
            guidance: (B,), weight w >= 0 of every row.
            with_states: also project the hidden tokens onto the teacher's inner states.
        """
        tokens, condition = self._embed(noise, guidance, labels)
        states = []
        for number, layer in enumerate(self.layers, start=1):
            tokens = layer(tokens, condition)
            if with_states and number in self.state_layers:
                states.append(self.projections[self.state_layers.index(number)](tokens))
        return StudentOutput(noise + self._unpatchify(self.head(tokens, condition)), states)

    @torch.no_grad()
    def start_from(self, teacher: TransformerFlow) -> None:
        """Copy attention and MLP weights of the teacher's layers, spread over the depth in generation order.

        Raises:
            ConfigError: if width, heads or MLP of the two differ.
        """
        blocks: Any = teacher.blocks
        sources = [layer for block in reversed(blocks) for layer in block.layers]
        layers: list[Any] = list(self.layers)
        for index, layer in enumerate(layers):
            source = sources[round(index * (len(sources) - 1) / max(1, len(layers) - 1))]
            pairs = (
                (layer.attention.qkv, source.attention.qkv),
                (layer.attention.out, source.attention.proj),
                (layer.mlp[0], source.mlp.up),
                (layer.mlp[2], source.mlp.down),
            )
            for own, other in pairs:
                if own.weight.shape != other.weight.shape or other.bias is None:
                    raise ConfigError(
                        f"model.initial: teacher: its layers have weights of {tuple(other.weight.shape)} where the "
                        f"student has {tuple(own.weight.shape)} (width {teacher.config.width}, "
                        f"{teacher.config.query_heads} heads, mlp {teacher.config.mlp}). Give the student the same "
                        "width, num_heads and mlp_ratio, or use initial: random."
                    )
                own.weight.copy_(other.weight)
                own.bias.copy_(other.bias)


def state_layers(depth: int, layers_per_block: Sequence[int]) -> tuple[int, ...]:
    """Return the student's layer, counted from 1, after which each inner state of the teacher is due.

    Generation inverts the last block first. A block is given a share of the depth in proportion to its layers, and
    one layer at least; the last state is the latent itself, which the head predicts.

    Raises:
        ConfigError: if there are fewer layers than blocks.
    """
    blocks = list(reversed(layers_per_block))
    if depth < len(blocks):
        raise ConfigError(
            f"model.student.depth: {depth} layers cannot follow the {len(blocks)} blocks of the teacher, which take "
            f"one layer each. Use depth {len(blocks)} or more."
        )
    total = sum(blocks)
    due: list[int] = []
    for index in range(len(blocks) - 1):
        share = round(depth * sum(blocks[: index + 1]) / total)
        lowest = (due[-1] if due else 0) + 1
        due.append(min(max(share, lowest), depth - (len(blocks) - 1 - index)))
    return tuple(due)


def default_sizes(teacher: FlowConfig) -> dict[str, Any]:
    """Return the default student: at most a third of the teacher's parameters, but not narrower than small teachers.

    `SMALLEST_WIDTH`, or the teacher's width where that is less, is the least, so the third holds of teachers wider than
    some 240 channels. A layer of the student of width d has 18 d^2 parameters (12, and 6 of its modulation), one of the
    teacher of width D 12 D^2 about. The student has two thirds of the teacher's layers, one per block at least, and
    gives up width for the rest.
    """
    layers = sum(teacher.layers_per_block)
    depth = max(teacher.num_blocks, round(layers * 2 / 3))
    widest = (
        12 * teacher.width**2 * layers / 3.5 / (18 * depth)
    ) ** 0.5  # embeddings take the rest of the third
    width = min(max(int(widest), SMALLEST_WIDTH), teacher.width)
    width = max(1, width // CHANNELS_PER_HEAD) * CHANNELS_PER_HEAD
    return {
        "width": width,
        "depth": depth,
        "num_heads": width // CHANNELS_PER_HEAD,
        "patch_size": teacher.patch_size,
    }
