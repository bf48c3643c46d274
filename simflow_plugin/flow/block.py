"""One block of the flow: reorder, run a causal transformer, apply its affine map, over all tokens or step by step.

Step i of a block reads input i and gives the parameters of target i + `lag`:
with a start token, input 0 is that token, input i is x_{i-1}, and lag = 0; with an output shift, input i is
x_i, and lag = 1, so target 0 passes unchanged. Steps and targets count in the block's own order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from simflow_plugin.flow.adaln import AdaLN, LayerModulation
from simflow_plugin.flow.affine import Affine, affine_forward, affine_parameters
from simflow_plugin.flow.architecture import FlowConfig
from simflow_plugin.flow.attention import AttentionBackend
from simflow_plugin.flow.conditioning import Embedding, make_embedding
from simflow_plugin.flow.kv_cache import LayerCache, StaticCache
from simflow_plugin.flow.layers import Layer, RmsNorm


class BlockOutput(NamedTuple):
    """`noise` (B, T, D); `logdet` (B,), nats; `hidden` (B, T, width) if it was asked for. Raster order."""

    noise: Tensor
    logdet: Tensor
    hidden: Tensor | None = None


class FlowBlock(nn.Module):
    """An affine autoregressive map u_t = (x_t - b_t) / s_t, (b_t, s_t) a transformer of x_0 .. x_{t-1}.

    Blocks differ by their `index` in training order, from 0.
    """

    def __init__(self, config: FlowConfig, index: int, backend: AttentionBackend) -> None:
        super().__init__()
        self.config = config
        self.is_flipped = (index % 2 == 1) != (config.first_order == "flip")
        is_deep = index == config.num_blocks - 1
        sees_condition = is_deep or config.conditional_blocks == "all"
        self.lag = 0 if config.start_token else 1
        self.proj_in = nn.Linear(config.token_dim, config.width)
        self.start = nn.Parameter(torch.randn(1, 1, config.token_dim)) if config.start_token else None
        self.position = (
            nn.Parameter(torch.randn(config.num_tokens, config.width) * 0.01)
            if config.positions == "learned"
            else None
        )
        self.condition = make_embedding(config) if sees_condition else None
        is_modulated = self.condition is not None and config.is_modulated
        self.layers = nn.ModuleList(
            Layer(config, backend, is_modulated) for _ in range(config.layers_per_block[index])
        )
        self.final_norm = RmsNorm(config.width) if config.final_norm else nn.Identity()
        halves = 1 if config.scale == "unit" else 2
        self.proj_out = nn.Linear(config.width, halves * config.token_dim)
        self._initialize()

    @property
    def is_conditional(self) -> bool:
        """True if this block sees labels or condition features."""
        return self.condition is not None

    def forward(
        self,
        tokens: Tensor,
        condition: Tensor | None,
        rotation: Tensor | None,
        hidden_layer: int | None = None,
    ) -> BlockOutput:
        """Map tokens (B, T, D) in raster order towards noise.

        Args:
            tokens: (B, T, D).
            condition: labels (B,) or features (B, L, F); ignored by an unconditional block.
            rotation: of prefix and tokens, or None.
            hidden_layer: counted from 1; the hidden tokens after that layer are returned.
        """
        ordered = self.reorder(tokens)
        affine, hidden = self.affine_of(ordered, condition, rotation, hidden_layer)
        noise, logdet = affine_forward(ordered, affine)
        return BlockOutput(self.reorder(noise), logdet, hidden)

    def affine_of(
        self,
        ordered: Tensor,
        condition: Tensor | None,
        rotation: Tensor | None,
        hidden_layer: int | None = None,
    ) -> tuple[Affine, Tensor | None]:
        """Return the affine parameters (B, T, D) of all targets, and the hidden tokens that were asked for.

        Args:
            ordered: (B, T, D), tokens in the block's own order, as the parameters are.
            condition: as for `forward`, and so are `rotation` and `hidden_layer`.
        """
        embedding = self.embed_condition(condition)
        sequence = self.embed_inputs(
            self.shift_inputs(ordered), self.position_rows(0, ordered.shape[1]), embedding
        )
        num_prefix = embedding.num_prefix
        if embedding.prefix is not None:
            sequence = torch.cat([embedding.prefix.to(sequence.dtype), sequence], dim=1)
        turn = self.rotation_of(rotation, 0, sequence.shape[1], num_prefix)
        hidden = None
        for number, (layer, modulation) in enumerate(self.modulated_layers(embedding), start=1):
            sequence = self._run(layer, sequence, turn, modulation)
            if number == hidden_layer:
                hidden = self.reorder(sequence[:, num_prefix:])
        return self.align(self.head(sequence[:, num_prefix:])), hidden

    def reorder(self, tokens: Tensor) -> Tensor:
        """Go from raster order to the block's own order, or back: both orders are their own inverse."""
        return tokens.flip(1) if self.is_flipped else tokens

    def shift_inputs(self, ordered: Tensor) -> Tensor:
        """Return the inputs (B, T, D) of all steps."""
        if self.start is None:
            return ordered
        start = self.start.to(ordered.dtype).expand(ordered.shape[0], -1, -1)
        return torch.cat([start, ordered[:, :-1]], dim=1)

    def align(self, affine: Affine) -> Affine:
        """Move parameters from steps to targets; a target before the first step gets the identity."""
        if self.lag == 0:
            return affine
        return Affine(*(torch.nn.functional.pad(part[:, :-1], (0, 0, 1, 0)) for part in affine))

    def embed_condition(self, condition: Tensor | None) -> Embedding:
        """Return the condition as this block sees it."""
        if self.condition is None or condition is None:
            return Embedding()
        embedded = self.condition(condition)
        if self.config.is_modulated:
            return Embedding(modulations=tuple(layer.adaln(embedded) for layer in self.layers))  # type: ignore[operator, union-attr]
        return Embedding(added=embedded) if self.config.is_added else Embedding(prefix=embedded)

    def modulated_layers(self, embedding: Embedding) -> Iterator[tuple[nn.Module, LayerModulation | None]]:
        """Return the layers, each with its part of the condition."""
        modulations = embedding.modulations or (None,) * len(self.layers)
        return zip(self.layers, modulations, strict=True)

    def position_rows(self, first_step: int, stop: int) -> Tensor | None:
        """Return the learned positions (n, width) of steps first_step : stop, or None for rotary ones."""
        if self.position is None:
            return None
        return (self.position.flip(0) if self.is_flipped else self.position)[first_step:stop]

    def embed_inputs(self, inputs: Tensor, positions: Tensor | None, embedding: Embedding) -> Tensor:
        """Return the hidden tokens (B, n, width) of inputs (B, n, D) at `positions` (n, width)."""
        hidden = self.proj_in(inputs.to(self.proj_in.weight.dtype))
        if positions is not None:
            hidden = hidden + positions
        if embedding.added is not None:
            hidden = hidden + embedding.added
        return hidden

    def rotation_of(self, rotation: Tensor | None, start: int, stop: int, num_prefix: int) -> Tensor | None:
        """Return the rotation of positions start : stop of this block, whose prefix has `num_prefix` tokens.

        `rotation` is the flow's, with the prefix rows in front; a block without a prefix skips them.
        """
        if rotation is None:
            return None
        skipped = len(rotation) - self.config.num_tokens - num_prefix
        return rotation[skipped + start : skipped + stop]

    def run_layers(
        self,
        hidden: Tensor,
        rotation: Tensor | None,
        embedding: Embedding,
        cache: Sequence[LayerCache | StaticCache | None],
        start: int,
    ) -> Tensor:
        """Run all layers on positions start : start + n, over the cache, which is written."""
        for (layer, modulation), layer_cache in zip(self.modulated_layers(embedding), cache, strict=True):
            hidden = layer(hidden, rotation, modulation, layer_cache, start)
        return hidden

    def head(self, hidden: Tensor) -> Affine:
        """Return the affine parameters (B, n, D) that steps with these hidden tokens (B, n, width) give."""
        return affine_parameters(self.proj_out(self.final_norm(hidden)), self.config)

    def _run(
        self, layer: nn.Module, hidden: Tensor, rotation: Tensor | None, modulation: LayerModulation | None
    ) -> Tensor:
        if self.config.activation_checkpointing and torch.is_grad_enabled():
            # Nothing in a layer is random, so there is no generator state to keep.
            return checkpoint(
                layer, hidden, rotation, modulation, use_reentrant=False, preserve_rng_state=False
            )
        return layer(hidden, rotation, modulation)

    def _initialize(self) -> None:
        """Start as the identity: the output projection is zero, hence a = b = 0 and s = 1; adaLN is off."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for layer in self.layers:
            if isinstance(layer.adaln, AdaLN):
                layer.adaln.reset()
        nn.init.zeros_(self.proj_out.weight)
