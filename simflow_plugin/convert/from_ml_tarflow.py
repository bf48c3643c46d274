"""Conversion of the flow of apple/ml-tarflow (commit 313120e).

Conventions that differ: the peer orders a token's channels (channel, row, column), we (row, column, channel), so
the weights that touch tokens are permuted; its logdet is a mean over dimensions, ours a sum; with `nvp: false` its
forward pass stops before the prior, so our noise is its output / sqrt(var) and follows N(0, I).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from simflow_plugin.convert.arguments import FlowArguments
from simflow_plugin.convert.renaming import REMEDY, Rule, convert_tensors, find_module, reordered, unchanged
from simflow_plugin.errors import WeightsError
from simflow_plugin.flow import FlowConfig, TransformerFlow
from simflow_plugin.weights import load_strictly

PEER = "ml-tarflow"
HEAD_DIM = 64
"""Fixed in the peer."""


def layer_rule(theirs: str, ours: str, transform: Callable[[Tensor], Tensor] = unchanged) -> Rule:
    """Return the rule of a tensor of a transformer layer, as both peers call it and as we do."""
    return Rule("blocks.{i}.attn_blocks.{j}." + theirs, "blocks.{i}.layers.{j}." + ours, transform)


LAYER_RULES = (
    layer_rule("attention.norm.{w}", "attention_norm.{w}"),
    layer_rule("attention.qkv.{w}", "attention.qkv.{w}"),
    layer_rule("attention.proj.{w}", "attention.proj.{w}"),
    layer_rule("mlp.norm.{w}", "mlp_norm.{w}"),
    layer_rule("mlp.main.0.{w}", "mlp.up.{w}"),
    layer_rule("mlp.main.2.{w}", "mlp.down.{w}"),
)
"""What both peers share."""


class TarflowArguments(FlowArguments):
    """Constructor arguments of the peer's `Model`, with its defaults."""

    peer = PEER

    channels: int = Field(gt=0, multiple_of=HEAD_DIM)
    layers_per_block: int = Field(gt=0)
    nvp: bool = True
    num_classes: int = Field(0, ge=0)


def from_ml_tarflow(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> TransformerFlow:
    """Build our flow with the weights of the peer's `Model`.

    Args:
        state_dict: of the peer's model, plain or in a training checkpoint's wrappers; any floating dtype.
        config: the peer's constructor arguments by name.
    Returns:
        The flow, float32, in evaluation mode. Guide it with `guidance_rule="linear"`, as the peer does.
    Raises:
        ConfigError: for an unknown, unsupported or malformed argument.
        WeightsError: for missing, unknown or wrongly shaped tensors, or a prior that is not positive.
    Reference:
        TarFlow, arXiv:2412.06329.
    """
    arguments = TarflowArguments.parse(config)
    tensors = find_module(state_dict, PEER)
    _check_prior(tensors, arguments)
    flow = TransformerFlow(flow_config(arguments))
    load_strictly(flow, convert_tensors(tensors, _rules(arguments), PEER), PEER, REMEDY)
    return flow.eval()


def flow_config(arguments: TarflowArguments) -> FlowConfig:
    """Return our configuration of the same flow."""
    return arguments.to_config(
        family="tarflow",
        head_dim=HEAD_DIM,
        layers_per_block=(arguments.layers_per_block,) * arguments.num_blocks,
        scale="exp" if arguments.nvp else "unit",
        num_classes=arguments.num_classes or None,
    )


def channel_order(channels: int, patch_size: int) -> Tensor:
    """Return (D,): entry k is where the peer keeps our k-th channel of a token."""
    peer = torch.arange(channels * patch_size**2).reshape(channels, patch_size, patch_size)
    return peer.permute(1, 2, 0).flatten()


def _rules(arguments: TarflowArguments) -> list[Rule]:
    order = channel_order(arguments.in_channels, arguments.patch_size)
    outputs = torch.cat([order, order + len(order)]) if arguments.nvp else order
    prior = Rule("var", "prior_log_std", lambda var: 0.5 * reordered(1, order)(var).log())
    return [
        Rule("blocks.{i}.proj_in.weight", "blocks.{i}.proj_in.weight", reordered(1, order)),
        Rule("blocks.{i}.proj_in.bias", "blocks.{i}.proj_in.bias"),
        Rule("blocks.{i}.proj_out.{w}", "blocks.{i}.proj_out.{w}", reordered(0, outputs)),
        Rule("blocks.{i}.pos_embed", "blocks.{i}.position"),
        Rule("blocks.{i}.class_embed", "blocks.{i}.condition.table", lambda table: table.squeeze(1)),
        *LAYER_RULES,
        Rule("blocks.{i}.attn_mask", None),  # a constant
        Rule("var", None) if arguments.nvp else prior,
    ]


def _check_prior(tensors: Mapping[str, Tensor], arguments: TarflowArguments) -> None:
    var = tensors.get("var")
    if var is None:
        return
    if not bool((var > 0).all()):
        raise WeightsError(f"{PEER}: `var` holds values that are not positive; the prior's variance must be")
    if arguments.nvp and not bool((var == 1).all()):
        raise WeightsError(
            f"{PEER}: `var` is not one, but with `nvp: true` the prior is N(0, I). Was it trained with `nvp: false`?"
        )
