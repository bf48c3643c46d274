"""Conversion of the flow of apple/ml-starflow (commit e565a46).

Key map, peer -> ours (`{i}` counts blocks, `{j}` layers; w/b: `.weight` and `.bias`), beside what ml-tarflow shares:

    blocks.{i}.sos_embed                                  -> blocks.{i}.start
    blocks.{i}.proj_txt w/b                               -> blocks.{i}.condition.proj
    blocks.{i}.final_norm.weight                          -> blocks.{i}.final_norm.weight, one more
    ...{j}.attention.query_norm / .key_norm.weight        -> ...{j}.attention.query_scale / .key_scale, one more
    ...{j}.attention.post_norm / mlp.post_norm .weight    -> ...{j}.attention_post_norm / mlp_post_norm, one more
    ...{j}.mlp.gate_proj, mlp.up_proj w/b                 -> ...{j}.mlp.up, joined in that order
    ...{j}.mlp.down_proj w/b                              -> ...{j}.mlp.down
    ...{j}.adaLN_modulation.1 w/b                         -> ...{j}.adaln.proj
    attn_mask, var, feat_rope.freqs_cos / _sin            -> none: constants that the peer keeps for old checkpoints

Conventions that differ: the peer's RMSNorm multiplies by 1 + weight; `hf_style_rope` pairs channel i with i + d / 2,
we 2i with 2i + 1, so the rows of queries and keys are permuted; its logdet is per dimension, ours a sum. A class
label is a text of one token in the peer: one-hot features, see `label_features`.

adaLN (`adaln`, as train.py calls it, or `use_adaln`): the peer's layers have it, without gates, but its `Model` builds
none with it and hands them no condition. Weights with `adaLN_modulation` are of a model that does; here every layer
of a block that sees the text gets it, its condition is the projected text of one token, and that is no prefix then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from simflow_plugin.contracts import NO_LABEL
from simflow_plugin.convert.arguments import PeerConstructor, make_config
from simflow_plugin.convert.from_ml_tarflow import layer_rules
from simflow_plugin.convert.renaming import REMEDY, Rule, convert_tensors, find_module, reordered
from simflow_plugin.errors import ShapeError
from simflow_plugin.flow import FlowConfig, TransformerFlow
from simflow_plugin.options import Options
from simflow_plugin.weights import load_strictly

PEER = "ml-starflow"
TEXT_FREQUENCIES = 8
"""Rotary frequencies that the peer keeps for the position in the text, whatever the head's size."""


class StarflowArguments(Options):
    """Constructor arguments of the peer's `Model`, with its defaults."""

    in_channels: int = Field(gt=0)
    img_size: int = Field(gt=0)
    patch_size: int = Field(gt=0)
    channels: int = Field(gt=0)
    num_blocks: int = Field(gt=0)
    layers_per_block: tuple[int, ...] = Field(min_length=1)
    head_dim: int = Field(64, gt=0)
    num_heads: int | None = Field(None, gt=0)
    num_kv_heads: int | None = Field(None, gt=0)
    rope: bool = False
    pt_seq_len: int | None = Field(None, ge=0)
    sos: bool = False
    txt_size: int = Field(0, ge=0)
    txt_dim: int = Field(0, ge=0)
    cond_top_only: bool = False
    use_softplus: bool = False
    use_swiglu: bool = False
    use_bias: bool = True
    use_qk_norm: bool = False
    use_post_norm: bool = False
    use_final_norm: bool = False
    hf_style_rope: bool = False
    norm_type: Literal["layer_norm", "rms_norm"] = "layer_norm"
    soft_clip: float = Field(0, ge=0)
    seq_order: Literal["R2L", "L2R"] = "R2L"
    adaln: bool = False

    @model_validator(mode="after")
    def _supported(self) -> StarflowArguments:
        if not self.rope:
            raise ValueError(
                "`rope`: false is not supported: the peer itself cannot run it at commit e565a46"
            )
        if bool(self.txt_size) != bool(self.txt_dim):
            raise ValueError(
                f"`txt_size` {self.txt_size} with `txt_dim` {self.txt_dim} is not supported: give both, or neither"
            )
        if self.cond_top_only and not self.txt_size:
            raise ValueError("`cond_top_only` needs `txt_size` > 0")
        if self.adaln and self.txt_size != 1:
            raise ValueError(f"`adaln` needs a text of one token, txt_size 1, found {self.txt_size}")
        if self.img_size % self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} does not divide img_size {self.img_size}")
        if len(self.layers_per_block) not in (1, self.num_blocks) or min(self.layers_per_block) < 1:
            raise ValueError(
                f"`layers_per_block`: expected 1 or {self.num_blocks} (num_blocks) numbers of layers, each at least "
                f"1, found {list(self.layers_per_block)}"
            )
        return self

    @property
    def all_layers(self) -> tuple[int, ...]:
        """Layers of every block, in training order."""
        return self.layers_per_block * (1 if len(self.layers_per_block) > 1 else self.num_blocks)


CONSTRUCTOR = PeerConstructor(
    PEER,
    StarflowArguments,
    # Checkpointing saves memory in training only; the next two act through `learnable_self_denoiser` and
    # `use_pretrained_lm`; the last two are passed by the peer's scripts and read nowhere.
    ignored=frozenset(
        {
            "use_checkpoint",
            "use_checkpoint_mlp",
            "conditional_denoiser",
            "denoiser_window",
            "use_mm_attn",
            "nvp",
            "noise_embed_denoiser",
        }
    ),
    refused={
        "use_pretrained_lm": "a deep block made of a language model (one-dimensional positions)",
        "learnable_self_denoiser": "a second, non-causal network beside the flow",
        "temporal_causal": "video",
        "shallow_block_local": "video",
        "local_attn_window": "video",
        "top_block_channels": "a deep block wider than the others; leave it out where it equals `channels`",
        "num_classes": "the peer has no classes; a label is a text of one token: txt_size 1, txt_dim = number of "
        "classes + 1, with features from simflow_plugin.convert.label_features",
    },
)


def from_ml_starflow(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> TransformerFlow:
    """Build our flow with the weights of the peer's `Model`.

    Args:
        state_dict: of the peer's model, plain or in a training checkpoint's wrappers; any floating dtype.
        config: the peer's constructor arguments by name.
    Returns:
        The flow, float32, in evaluation mode; with text, it takes `condition=` (B, L, txt_dim) of any length.
    Raises:
        ConfigError: for an unknown, unsupported or malformed argument.
        WeightsError: for missing, unknown or wrongly shaped tensors.
    Reference:
        STARFlow, arXiv:2506.06276.
    """
    arguments = CONSTRUCTOR.parse(_canonical(config))
    tensors = find_module(state_dict, PEER)
    ours = flow_config(arguments)
    converted = _join_gates(convert_tensors(tensors, _rules(arguments, ours), PEER))
    flow = TransformerFlow(ours)
    load_strictly(flow, converted, PEER, REMEDY)
    return flow.eval()


def _canonical(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments without a redundant `top_block_channels`, and `use_adaln` under its other name."""
    values = dict(config)
    if values.get("top_block_channels") == values.get("channels"):
        values.pop("top_block_channels", None)
    if "use_adaln" in values:
        values.setdefault("adaln", values.pop("use_adaln"))
    return values


def flow_config(arguments: StarflowArguments) -> FlowConfig:
    """Return our configuration of the same flow.

    Raises:
        ConfigError: if the sizes of heads and channels clash.
    """
    side = arguments.img_size // arguments.patch_size
    # Then no layer has a norm's weight.
    is_modulated_throughout = arguments.adaln and not arguments.cond_top_only
    return make_config(
        PEER,
        family="starflow",
        width=arguments.channels,
        head_dim=arguments.head_dim,
        num_heads=arguments.num_heads,
        num_kv_heads=arguments.num_kv_heads,
        layers_per_block=arguments.all_layers,
        patch_size=arguments.patch_size,
        token_dim=arguments.in_channels * arguments.patch_size**2,
        grid_size=(side, side),
        first_order="identity" if arguments.seq_order == "R2L" else "flip",
        start_token=arguments.sos,
        scale="softplus" if arguments.use_softplus else "exp",
        soft_clip=arguments.soft_clip or None,
        soft_clips_shift=arguments.soft_clip > 0,  # the peer clips all outputs of a block
        rope_side=arguments.pt_seq_len or side,
        condition_dim=arguments.txt_dim or None,
        condition_length=1 if arguments.adaln else None,
        condition_frequencies=TEXT_FREQUENCIES,
        class_conditioning="adaln" if arguments.adaln else "token",
        adaln_gates=not arguments.adaln,
        conditional_blocks="deep" if arguments.cond_top_only else "all",
        norm="rms" if arguments.norm_type == "rms_norm" and not is_modulated_throughout else "layer",
        post_norm=arguments.use_post_norm,
        final_norm=arguments.use_final_norm,
        qk_norm=arguments.use_qk_norm,
        mlp="geglu" if arguments.use_swiglu else "gelu",  # the peer's gate is a GELU, whatever its name
        bias=arguments.use_bias,
    )


def label_features(labels: Tensor, num_classes: int) -> Tensor:
    """Return the condition of a class-conditional checkpoint of the peer, (B, 1, num_classes + 1), one-hot.

    Args:
        labels: (B,) int64 in [0, num_classes), or `NO_LABEL`, whose features are the last unit vector.
        num_classes: of the peer's vocabulary; the flow's `condition_dim` is one more.
    Raises:
        ShapeError: for labels out of range.
    """
    if labels.dim() != 1 or bool(((labels < NO_LABEL) | (labels >= num_classes)).any()):
        raise ShapeError(
            f"labels: expected (B,) in 0 to {num_classes - 1}, or {NO_LABEL} for none, found {tuple(labels.shape)} "
            f"up to {int(labels.max()) if labels.numel() else 'nothing'}"
        )
    indices = torch.where(labels == NO_LABEL, num_classes, labels)
    return functional.one_hot(indices, num_classes + 1)[:, None].to(torch.float32)


def _rules(arguments: StarflowArguments, config: FlowConfig) -> list[Rule]:
    peer, ours = r"(blocks\.\d+\.)attn_blocks(\.\d+\.)", r"\1layers\2"
    parameter = r"\.(weight|bias)"
    rules = [
        Rule(r"(blocks\.\d+\.proj_(?:in|out)\.(?:weight|bias))", r"\1"),
        Rule(r"(blocks\.\d+\.)sos_embed", r"\1start"),
        Rule(rf"(blocks\.\d+\.)proj_txt{parameter}", r"\1condition.proj.\2"),
        Rule(r"(blocks\.\d+\.final_norm\.weight)", r"\1", _one_more),
        Rule(rf"{peer}attention\.post_norm\.weight", rf"{ours}attention_post_norm.weight", _one_more),
        Rule(rf"{peer}mlp\.post_norm\.weight", rf"{ours}mlp_post_norm.weight", _one_more),
        Rule(rf"{peer}mlp\.(gate|up)_proj{parameter}", rf"{ours}mlp.\3.\4"),
        Rule(rf"{peer}mlp\.down_proj{parameter}", rf"{ours}mlp.down.\3"),
        Rule(rf"{peer}adaLN_modulation\.1{parameter}", rf"{ours}adaln.proj.\3"),
        Rule(r"(?:blocks\.\d+\.attn_mask|var|feat_rope(?:_gen)?\.freqs_(?:cos|sin))", None),
    ]
    head = torch.arange(config.head_dim)
    if arguments.hf_style_rope:
        head = head.reshape(2, -1).T.flatten()  # ours: 2i, 2i + 1; theirs: i, i + d / 2
    turned = config.query_heads + config.key_heads
    starts = torch.arange(turned)[:, None] * config.head_dim
    values = torch.arange(turned * config.head_dim, (turned + config.key_heads) * config.head_dim)
    rows = torch.cat([(starts + head).flatten(), values])
    rules += [
        Rule(rf"{peer}attention\.qkv{parameter}", rf"{ours}attention.qkv.\3", reordered(0, rows)),
        Rule(
            rf"{peer}attention\.(query|key)_norm\.weight",
            rf"{ours}attention.\3_scale",
            lambda weight: _one_more(reordered(0, head)(weight)),
        ),
    ]
    rms_norms = [
        Rule(rf"{peer}attention\.norm\.weight", rf"{ours}attention_norm.weight", _one_more),
        Rule(rf"{peer}mlp\.norm\.weight", rf"{ours}mlp_norm.weight", _one_more),
    ]
    # The first rule that matches wins.
    return rules + (rms_norms if config.norm == "rms" else []) + layer_rules()


def _one_more(weight: Tensor) -> Tensor:
    return weight + 1


def _join_gates(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join `mlp.gate` and `mlp.up` of gated MLPs into our `mlp.up`, gate first."""
    joined = dict(tensors)
    for name in tensors:
        if ".mlp.gate." in name:
            up = name.replace(".mlp.gate.", ".mlp.up.")
            parts = [joined.pop(name), *([joined[up]] if up in joined else [])]
            joined[up] = torch.cat(parts)
    return joined
