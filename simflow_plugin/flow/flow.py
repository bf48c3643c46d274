"""The flow itself: tokens <-> noise with an exact density, as a stack of affine autoregressive blocks.

log p(x) = log N(u; 0, I) + sum_k logdet_k. Training runs the shallow blocks first and the deep one last;
sampling runs them backwards.
Reference: TarFlow, arXiv:2412.06329; STARFlow, arXiv:2506.06276; SimFlow, arXiv:2512.04084.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from simflow_plugin.contracts import NO_LABEL
from simflow_plugin.errors import ConfigError, ShapeError
from simflow_plugin.flow.architecture import FlowConfig
from simflow_plugin.flow.attention import AttentionContext
from simflow_plugin.flow.block import FlowBlock
from simflow_plugin.flow.guidance import GuidanceContext, GuidanceRule, build_guidance, check_guidance
from simflow_plugin.flow.input_checks import check_condition, check_guide, check_labels, check_tokens
from simflow_plugin.flow.rope import rotation_table
from simflow_plugin.flow.sampling.inversion import (
    ConditionedBlocks,
    SamplingRequest,
    guidable_blocks,
    invert,
)
from simflow_plugin.flow.sampling.methods import Jacobi, Method, parse_methods
from simflow_plugin.registry import ATTENTION


class FlowOutput(NamedTuple):
    """Output of a forward pass.

    `noise` (B, T, D), in the dtype of the tokens; `logdet` (B,), nats, at least float32; `hidden` (B, T,
    width) in raster order, or None; `block_logdets` (K, B), nats, the parts of `logdet` in training order;
    `regularization`, a scalar: `intermediate_weight` times the summed mean squares of what the K blocks get, the tokens
    and the outputs of all blocks but the last; None where the weight is 0.
    """

    noise: Tensor
    logdet: Tensor
    hidden: Tensor | None
    block_logdets: Tensor
    regularization: Tensor | None = None


class TransformerFlow(nn.Module):
    """A transformer autoregressive flow on tokens (B, T, D) in raster order.

    A forward pass changes nothing in the module, draws nothing at random, and never branches on values for
    GPU tensors: label dropout is the caller's (`drop_labels`), caches live in the sampler.
    """

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        context = AttentionContext(config.head_dim, config.query_heads, config.key_heads)
        backend = ATTENTION.build(config.attention, context)
        self.blocks = nn.ModuleList(FlowBlock(config, index, backend) for index in range(config.num_blocks))
        # Blocks of unit scale preserve volume; then the prior learns a variance for every token and channel.
        self.prior_log_std = (
            nn.Parameter(torch.zeros(config.num_tokens, config.token_dim)) if config.scale == "unit" else None
        )

    @property
    def deep_block(self) -> FlowBlock:
        """The last block in training order, where generation starts."""
        return self.blocks[-1]  # type: ignore[return-value]

    @property
    def shallow_blocks(self) -> list[FlowBlock]:
        """The other blocks, in training order."""
        return list(self.blocks[:-1])  # type: ignore[arg-type]

    def forward(
        self,
        tokens: Tensor,
        labels: Tensor | None = None,
        *,
        condition: Tensor | None = None,
        hidden_layer: int | None = None,
        hidden_block: int | None = None,
        checks_values: bool | None = None,
    ) -> FlowOutput:
        """Map tokens to noise.

        Args:
            tokens: (B, T, D), raster order.
            labels: (B,) int64 in [0, num_classes), `NO_LABEL` for unconditional rows; None for all of them.
            condition: (B, L, condition_dim), in place of labels, for a flow with condition features.
            hidden_layer: counted from 1 inside a block: the hidden tokens after that layer are returned.
                Hidden token t is that of step t, moved to raster order. With a start token it has read the
                tokens before t (in the block's order) and predicts token t; with an output shift it has
                read token t as well.
            hidden_block: counted from 1 in training order; the deep block if None.
            checks_values: look for NaN and for labels out of range; None does on the CPU, where it is free. A
                training loop that counts and skips bad steps itself turns it off.

        Raises:
            ShapeError: for wrong shapes; for labels out of range and NaN where values are checked.
        """
        if checks_values is None:
            checks_values = tokens.device.type == "cpu" and not torch.compiler.is_compiling()
        rows = self._check(tokens, labels, condition, "tokens", checks_values)
        block_of_hidden = self._locate_hidden(hidden_layer, hidden_block)
        rotation = self._rotation(rows)
        noise, hidden, logdets, powers = tokens, None, [], []
        weight = self.config.intermediate_weight
        for index, block in enumerate(self.blocks):
            if weight > 0:
                powers.append(noise.to(torch.promote_types(noise.dtype, torch.float32)).square().mean())
            output = block(noise, rows, rotation, hidden_layer if index == block_of_hidden else None)
            noise = output.noise
            logdets.append(output.logdet)
            hidden = output.hidden if output.hidden is not None else hidden
        block_logdets = torch.stack(logdets)
        logdet = block_logdets.sum(dim=0)
        if self.prior_log_std is not None:
            noise = noise * torch.exp(-self.prior_log_std.to(noise.dtype))
            logdet = logdet - self.prior_log_std.to(logdet.dtype).sum()
        regularization = weight * torch.stack(powers).sum() if powers else None
        return FlowOutput(noise, logdet, hidden, block_logdets, regularization)

    def trajectory(
        self, tokens: Tensor, labels: Tensor | None = None, *, condition: Tensor | None = None
    ) -> list[Tensor]:
        """Return the states between tokens and noise, K + 1 times (B, T, D) in raster order, in training order.

        State 0 is `tokens`, state k what block k returns, and state K the noise that `forward` returns. All of them
        come from one parallel pass.

        Raises:
            ShapeError: as `forward`.
        """
        rows = self._check(tokens, labels, condition, "tokens", reads_values=False)
        rotation, states = self._rotation(rows), [tokens]
        for block in self.blocks:
            states.append(block(states[-1], rows, rotation, None).noise)
        if self.prior_log_std is not None:
            states[-1] = states[-1] * torch.exp(-self.prior_log_std.to(states[-1].dtype))
        return states

    def log_prob(
        self, tokens: Tensor, labels: Tensor | None = None, *, condition: Tensor | None = None
    ) -> Tensor:
        """Return log p(tokens | labels), (B,), nats, with the Gaussian's constant, at least float32.

        Raises:
            ShapeError: for wrong shapes, labels out of range, NaN; on every device.
        """
        self._check(tokens, labels, condition, "tokens", reads_values=True)
        output = self(tokens, labels, condition=condition)
        return standard_normal_log_prob(output.noise) + output.logdet

    @torch.no_grad()
    def log_prob_by_class(self, tokens: Tensor, rows_at_once: int | None = None) -> Tensor:
        """Return log p(tokens | y) for every class y, (B, num_classes), nats, at least float32.

        Blocks before the first that sees the label run once an image; the others take images and classes in one batch.

        Args:
            tokens: (B, T, D), raster order.
            rows_at_once: most rows of such a batch, for memory; None is all B * num_classes.
        Raises:
            ShapeError: for wrong shapes, NaN, or a flow without classes.
        """
        num_classes = self.config.num_classes
        if num_classes is None:
            raise ShapeError("labels: this flow has no classes to compare")
        self._check(tokens, None, None, "tokens", reads_values=True)
        num_shared = next(i for i, block in enumerate(self.blocks) if block.is_conditional)
        noise, logdet = self._through(0, num_shared, tokens, None)
        pairs, found = torch.arange(len(tokens) * num_classes, device=tokens.device), []
        for rows in pairs.split(rows_at_once or len(pairs)):
            image, label = rows // num_classes, rows % num_classes
            own, own_logdet = self._through(num_shared, len(self.blocks), noise[image], label)
            found.append(standard_normal_log_prob(own) + own_logdet + logdet[image])
        return torch.cat(found).view(len(tokens), num_classes)

    def _through(self, start: int, stop: int, tokens: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what blocks start : stop make of tokens (B, T, D), and their logdet (B,); the last adds the prior."""
        rotation, noise = self._rotation(rows), tokens
        logdet = torch.zeros(len(tokens), device=tokens.device)
        for block in self.blocks[start:stop]:
            output = block(noise, rows, rotation, None)
            noise, logdet = output.noise, logdet + output.logdet
        if stop == len(self.blocks) and self.prior_log_std is not None:
            noise = noise * torch.exp(-self.prior_log_std.to(noise.dtype))
            logdet = logdet - self.prior_log_std.to(logdet.dtype).sum()
        return noise, logdet

    @torch.no_grad()
    def inverse(
        self,
        noise: Tensor,
        labels: Tensor | None = None,
        *,
        condition: Tensor | None = None,
        null_condition: Tensor | None = None,
        guidance: float = 0.0,
        guidance_rule: str | Mapping[str, Any] | GuidanceRule = "starflow",
        method: Any = "cached",
        guess: Sequence[Tensor] | None = None,
        guide: TransformerFlow | None = None,
        return_statistics: bool = False,
    ) -> Any:
        """Map noise to tokens: the exact inverse of `forward` at guidance 0.

        Args:
            noise: (B, T, D), raster order.
            labels: (B,) int64, or None.
            condition: (B, L, condition_dim), or None.
            null_condition: (1 or B, L, condition_dim), what the unconditional half sees; with guidance only.
            guidance: w >= 0; 0 is the conditional model itself and costs one pass.
            guidance_rule: a name, or a mapping with `name` and the rule's options.
            method: `cached`, `naive`, `jacobi` or `auto`; a mapping with `name` and options; or a list of
                these, one per block in training order.
            guess: one (B, T, D) per block in training order, where the iteration on its input starts: the first K
                states of a `trajectory`. It changes the number of passes, not the answer; `jacobi` only.
            guide: autoguidance (arXiv:2406.02507): a weaker flow on the same latents, with the same condition, in place
                of the unconditional half. Only the first generated block is guided unless the rule's `block_interval`
                names others, whose variables the two flows have to share: checkpoints of one run.
            return_statistics: also return a `SamplingStatistics`.

        Returns:
            tokens (B, T, D), raster order, at least float32; or (tokens, statistics).

        Raises:
            ShapeError: for wrong shapes, labels out of range, NaN, a negative weight.
            ConfigError, RegistryError: for an unknown method or rule, or one of their options.
        """
        check_guidance(guidance)
        rows = self._check(noise, labels, condition, "noise", reads_values=True)
        rule = build_guidance(guidance_rule, GuidanceContext(self.config.num_blocks))
        null_rows = self._null_rows(rows, null_condition, guidance) if guide is None else None
        if guide is not None:
            check_guide(guide.config, self.config)
        if guidance > 0:
            self._check_reach(rule, guidance, is_autoguided=guide is not None)
        methods = parse_methods(method, self.config.num_blocks)
        if guess is not None:
            self._check_guess(guess, noise, methods)
        beside = None if guide is None else guide._conditioned(rows)
        request = SamplingRequest(null_rows, guidance, rule, methods, guess, beside)
        noise = noise.to(torch.promote_types(noise.dtype, torch.float32))
        if self.prior_log_std is not None:
            noise = noise * torch.exp(self.prior_log_std.to(noise.dtype))
        blocks = self._conditioned(rows)
        with torch.inference_mode():  # cheaper per operation than no_grad, and a step has many small ones
            tokens, statistics = invert(blocks, noise, request)
        tokens = tokens.clone()  # outside: the caller may use it in a graph of their own
        return (tokens, statistics) if return_statistics else tokens

    def sample(
        self,
        labels: Tensor | None = None,
        *,
        condition: Tensor | None = None,
        num_samples: int | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        **inverse_options: Any,
    ) -> Any:
        """Draw tokens (B, T, D); B is that of labels, condition or noise, or `num_samples`.

        Args:
            labels: (B,) int64, or None for an unconditional sample.
            condition: (B, L, condition_dim), or None.
            num_samples: B, where nothing else gives it.
            noise: (B, T, D) to start from, in place of a draw.
            generator: of the draw, on the model's device.
            inverse_options: `guidance`, `guidance_rule`, `method`, `null_condition`, `return_statistics`: see
                `inverse`.

        Raises:
            ShapeError: as `inverse`, and if the number of samples is unknown or contradictory.
        """
        known = {len(rows) for rows in (labels, condition, noise) if rows is not None}
        known |= {num_samples} if num_samples is not None else set()
        if len(known) != 1:
            raise ShapeError(
                f"num_samples: found {sorted(known) or 'nothing'}; give labels, condition, noise or "
                "num_samples, of one size"
            )
        if noise is None:
            weight = self.deep_block.proj_in.weight
            dtype = torch.promote_types(weight.dtype, torch.float32)
            shape = (known.pop(), self.config.num_tokens, self.config.token_dim)
            noise = torch.randn(shape, generator=generator, device=weight.device, dtype=dtype)
        return self.inverse(noise, labels, condition=condition, **inverse_options)

    def num_parameters(self) -> int:
        """Return the number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    def _check(
        self, tokens: Tensor, labels: Tensor | None, condition: Tensor | None, name: str, reads_values: bool
    ) -> Tensor | None:
        """Check the input; return the condition's rows: labels (B,), features (B, L, F), or None."""
        check_tokens(tokens, self.config, name, reads_values)
        if labels is not None:
            check_labels(labels, len(tokens), self.config, reads_values)
        if condition is not None:
            check_condition(condition, len(tokens), self.config, "condition", reads_values)
            return condition
        if self.config.condition_dim is not None:
            raise ShapeError("condition: missing; this flow takes condition features (B, L, condition_dim)")
        if labels is None and self.config.num_classes is not None:
            return torch.full((len(tokens),), NO_LABEL, dtype=torch.int64, device=tokens.device)
        return labels

    def _num_prefix(self, rows: Tensor | None) -> int:
        """Return how many prefix tokens a conditional block puts in front."""
        if rows is None:
            return 0
        return self.config.prefix_length(1 if self.config.num_classes is not None else rows.shape[1])

    def _rotation(self, rows: Tensor | None) -> Tensor | None:
        """Return the rotary table in the precision of the weights, whatever that of the tokens."""
        return rotation_table(self.config, self._num_prefix(rows), self.deep_block.proj_in.weight)

    def _conditioned(self, rows: Tensor | None) -> ConditionedBlocks:
        """Return this flow with the condition's rows, those of another flow that it guides perhaps."""
        if self.config.num_classes is None and self.config.condition_dim is None:
            rows = None
        return ConditionedBlocks(list(self.blocks), rows, self._rotation(rows))  # type: ignore[arg-type]

    def _null_rows(
        self, rows: Tensor | None, null_condition: Tensor | None, guidance: float
    ) -> Tensor | None:
        """Return the rows of the unconditional half, or None without guidance."""
        if null_condition is not None and self.config.condition_dim is None:
            raise ShapeError(
                "null_condition: this flow takes no condition features; its null label is built in"
            )
        if guidance == 0:
            return None
        if rows is None:
            raise ShapeError(
                f"guidance: found {guidance}, but this flow has no condition to guide towards; use 0"
            )
        if self.config.num_classes is not None:
            return torch.full_like(rows, NO_LABEL)
        if null_condition is None:
            raise ShapeError("null_condition: guidance > 0 needs the features of an empty condition")
        num_null = 1 if len(null_condition) == 1 else len(rows)
        check_condition(null_condition, num_null, self.config, "null_condition", True, rows.shape[1])
        return null_condition.to(rows.dtype).expand(len(rows), -1, -1)

    def _check_guess(self, guess: Sequence[Tensor], noise: Tensor, methods: Sequence[Method]) -> None:
        """Raise where a guess has another shape, or the method of a block reads none."""
        found = [tuple(state.shape) for state in guess]
        if found != [tuple(noise.shape)] * self.config.num_blocks:
            raise ShapeError(
                f"guess: found shapes {found}, expected {self.config.num_blocks} times {tuple(noise.shape)}"
            )
        if not all(isinstance(method, Jacobi) for method in methods):
            names = sorted({method.name for method in methods})
            raise ConfigError(
                f"guess: has no effect with method {', '.join(names)}; use jacobi, or leave it out"
            )

    def _check_reach(self, rule: GuidanceRule, guidance: float, is_autoguided: bool) -> None:
        """Raise ConfigError if the rule guides no token of any block that it may guide."""
        kind = "guided" if is_autoguided else "conditional"
        blocks = guidable_blocks(list(self.blocks), rule, is_autoguided)  # type: ignore[arg-type]
        num_tokens, like = self.config.num_tokens, self.deep_block.proj_in.weight
        if all(rule.weights(guidance, index, num_tokens, like) is None for index in blocks):
            raise ConfigError(
                f"guidance_rule: {rule.options.model_dump()} guides no token of a {kind} block, so that guidance "
                f"{guidance:g} has no effect; {kind} blocks: {', '.join(str(index + 1) for index in blocks)}"
            )

    def _locate_hidden(self, layer: int | None, block: int | None) -> int | None:
        """Return the index of the block whose hidden tokens are asked for, from 0."""
        if layer is None:
            if block is not None:
                raise ShapeError(f"hidden_block: found {block} without hidden_layer; name the layer too")
            return None
        number = self.config.num_blocks if block is None else block
        if not 1 <= number <= self.config.num_blocks:
            raise ShapeError(f"hidden_block: found {number}, expected 1 to {self.config.num_blocks}")
        num_layers = self.config.layers_per_block[number - 1]
        if not 1 <= layer <= num_layers:
            raise ShapeError(f"hidden_layer: found {layer}, expected 1 to {num_layers} in block {number}")
        return number - 1


def standard_normal_log_prob(noise: Tensor) -> Tensor:
    """Return log N(noise; 0, I) of each row, (B,), nats, at least float32."""
    noise = noise.to(torch.promote_types(noise.dtype, torch.float32))
    return -0.5 * (noise.square() + math.log(2 * math.pi)).flatten(1).sum(dim=1)
