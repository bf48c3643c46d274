"""Conversion of the flow of apple/ml-tarflow (commit 313120e).

Key map, peer -> ours (`{i}` counts blocks, `{j}` layers; w/b: `.weight` and `.bias`):

    blocks.{i}.proj_in / .proj_out w/b                    -> blocks.{i}.proj_in / .proj_out
    blocks.{i}.pos_embed                                  -> blocks.{i}.position
    blocks.{i}.class_embed (classes, 1, width)            -> blocks.{i}.condition.table
    blocks.{i}.attn_blocks.{j}.attention.norm w/b         -> blocks.{i}.layers.{j}.attention_norm
    blocks.{i}.attn_blocks.{j}.attention.qkv / .proj w/b  -> blocks.{i}.layers.{j}.attention.qkv / .proj
    blocks.{i}.attn_blocks.{j}.mlp.norm w/b               -> blocks.{i}.layers.{j}.mlp_norm
    blocks.{i}.attn_blocks.{j}.mlp.main.0 / .2 w/b        -> blocks.{i}.layers.{j}.mlp.up / .down
    var                                                   -> prior_log_std = ln(var) / 2, with `nvp: false`
    attn_mask                                             -> none: a constant

Conventions that differ: the peer orders a token's channels (channel, row, column), we (row, column, channel), so
the weights that touch tokens are permuted; its logdet is a mean over dimensions, ours a sum; with `nvp: false` its
forward pass stops before the prior, so our noise is its output / sqrt(var) and follows N(0, I).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from simflow_plugin.convert.arguments import PeerConstructor, make_config
from simflow_plugin.convert.renaming import REMEDY, Rule, convert_tensors, find_module, reordered
from simflow_plugin.errors import WeightsError
from simflow_plugin.flow import FlowConfig, TransformerFlow
from simflow_plugin.options import Options
from simflow_plugin.weights import load_strictly

PEER = "ml-tarflow"
HEAD_DIM = 64
"""Fixed in the peer."""


class TarflowArguments(Options):
    """Constructor arguments of the peer's `Model`, with its defaults."""

    in_channels: int = Field(gt=0)
    img_size: int = Field(gt=0)
    patch_size: int = Field(gt=0)
    channels: int = Field(gt=0, multiple_of=HEAD_DIM)
    num_blocks: int = Field(gt=0)
    layers_per_block: int = Field(gt=0)
    nvp: bool = True
    num_classes: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _patches_fit(self) -> TarflowArguments:
        if self.img_size % self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} does not divide img_size {self.img_size}")
        return self


CONSTRUCTOR = PeerConstructor(PEER, TarflowArguments, ignored=frozenset(), refused={})


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
    arguments = CONSTRUCTOR.parse(config)
    tensors = find_module(state_dict, PEER)
    _check_prior(tensors, arguments)
    flow = TransformerFlow(flow_config(arguments))
    load_strictly(flow, convert_tensors(tensors, _rules(arguments), PEER), PEER, REMEDY)
    return flow.eval()


def flow_config(arguments: TarflowArguments) -> FlowConfig:
    """Return our configuration of the same flow."""
    side = arguments.img_size // arguments.patch_size
    return make_config(
        PEER,
        family="tarflow",
        width=arguments.channels,
        head_dim=HEAD_DIM,
        layers_per_block=(arguments.layers_per_block,) * arguments.num_blocks,
        patch_size=arguments.patch_size,
        token_dim=arguments.in_channels * arguments.patch_size**2,
        grid_size=(side, side),
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
        Rule(r"(blocks\.\d+\.)proj_in\.weight", r"\1proj_in.weight", reordered(1, order)),
        Rule(r"(blocks\.\d+\.proj_in\.bias)", r"\1"),
        Rule(r"(blocks\.\d+\.proj_out\.(?:weight|bias))", r"\1", reordered(0, outputs)),
        Rule(r"(blocks\.\d+\.)pos_embed", r"\1position"),
        Rule(r"(blocks\.\d+\.)class_embed", r"\1condition.table", lambda table: table.squeeze(1)),
        *layer_rules(),
        Rule(r"blocks\.\d+\.attn_mask", None),
        Rule("var", None) if arguments.nvp else prior,
    ]


def layer_rules() -> list[Rule]:
    """Return the rules of a transformer layer that both peers share."""
    peer, ours = r"(blocks\.\d+\.)attn_blocks(\.\d+\.)", r"\1layers\2"
    parameter = r"\.(weight|bias)"
    return [
        Rule(rf"{peer}attention\.norm{parameter}", rf"{ours}attention_norm.\3"),
        Rule(rf"{peer}attention\.(qkv|proj){parameter}", rf"{ours}attention.\3.\4"),
        Rule(rf"{peer}mlp\.norm{parameter}", rf"{ours}mlp_norm.\3"),
        Rule(rf"{peer}mlp\.main\.0{parameter}", rf"{ours}mlp.up.\3"),
        Rule(rf"{peer}mlp\.main\.2{parameter}", rf"{ours}mlp.down.\3"),
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
