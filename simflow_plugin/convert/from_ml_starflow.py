"""Conversion of the flow of apple/ml-starflow (commit e565a46).

Conventions that differ: the peer's RMSNorm multiplies by 1 + weight; `hf_style_rope` pairs channel i with i + d / 2,
we 2i with 2i + 1, so the rows of queries and keys are permuted; its logdet is per dimension, ours a sum. A class
label is a text of one token in the peer: one-hot features, see `label_features`.

adaLN (`adaln`, as train.py calls it, or `use_adaln`): the peer's layers have it, without gates, but its `Model` builds
none with it and hands them no condition. Weights with `adaLN_modulation` are of a model that does; here every layer
of a block that sees the text gets it, its condition is the projected text of one token, and that is no prefix then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from simflow_plugin.contracts import NO_LABEL
from simflow_plugin.convert.arguments import FlowArguments
from simflow_plugin.convert.from_ml_tarflow import LAYER_RULES, layer_rule
from simflow_plugin.convert.renaming import REMEDY, Rule, convert_tensors, find_module, reordered
from simflow_plugin.errors import ShapeError
from simflow_plugin.flow import FlowConfig, TransformerFlow
from simflow_plugin.weights import load_strictly

PEER = "ml-starflow"
TEXT_FREQUENCIES = 8
"""Rotary frequencies that the peer keeps for the position in the text, whatever the head's size."""


class StarflowArguments(FlowArguments):
    """Constructor arguments of the peer's `Model`, with its defaults."""

    peer = PEER
    # Checkpointing saves memory in training only; the next two act through `learnable_self_denoiser` and
    # `use_pretrained_lm`; the last two are passed by the peer's scripts and read nowhere.
    ignored = frozenset(
        {
            "use_checkpoint",
            "use_checkpoint_mlp",
            "conditional_denoiser",
            "denoiser_window",
            "use_mm_attn",
            "nvp",
            "noise_embed_denoiser",
        }
    )
    refused: ClassVar[Mapping[str, str]] = {
        "use_pretrained_lm": "a deep block made of a language model (one-dimensional positions)",
        "learnable_self_denoiser": "a second, non-causal network beside the flow",
        "temporal_causal": "video",
        "shallow_block_local": "video",
        "local_attn_window": "video",
        "top_block_channels": "a deep block wider than the others; leave it out where it equals `channels`",
        "num_classes": "the peer has no classes; a label is a text of one token: txt_size 1, txt_dim = number of "
        "classes + 1, with features from simflow_plugin.convert.label_features",
    }

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
    arguments = StarflowArguments.parse(_canonical(config))
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
    # Then no layer has a norm's weight.
    is_modulated_throughout = arguments.adaln and not arguments.cond_top_only
    return arguments.to_config(
        family="starflow",
        head_dim=arguments.head_dim,
        num_heads=arguments.num_heads,
        num_kv_heads=arguments.num_kv_heads,
        layers_per_block=arguments.all_layers,
        first_order="identity" if arguments.seq_order == "R2L" else "flip",
        start_token=arguments.sos,
        scale="softplus" if arguments.use_softplus else "exp",
        soft_clip=arguments.soft_clip or None,
        soft_clips_shift=arguments.soft_clip > 0,  # the peer clips all outputs of a block
        rope_side=arguments.pt_seq_len or arguments.img_size // arguments.patch_size,
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
    head = torch.arange(config.head_dim)
    if arguments.hf_style_rope:
        head = head.reshape(2, -1).T.flatten()  # ours: 2i, 2i + 1; theirs: i, i + d / 2
    turned = config.query_heads + config.key_heads
    starts = torch.arange(turned)[:, None] * config.head_dim
    values = torch.arange(turned * config.head_dim, (turned + config.key_heads) * config.head_dim)
    rows = torch.cat([(starts + head).flatten(), values])

    def scale(weight: Tensor) -> Tensor:
        return _one_more(reordered(0, head)(weight))

    rms_norms = [
        layer_rule("attention.norm.weight", "attention_norm.weight", _one_more),
        layer_rule("mlp.norm.weight", "mlp_norm.weight", _one_more),
    ]
    tables = [f"feat_rope{kind}.freqs_{part}" for kind in ("", "_gen") for part in ("cos", "sin")]
    return [
        Rule("blocks.{i}.proj_in.{w}", "blocks.{i}.proj_in.{w}"),
        Rule("blocks.{i}.proj_out.{w}", "blocks.{i}.proj_out.{w}"),
        Rule("blocks.{i}.sos_embed", "blocks.{i}.start"),
        Rule("blocks.{i}.proj_txt.{w}", "blocks.{i}.condition.proj.{w}"),
        Rule("blocks.{i}.final_norm.weight", "blocks.{i}.final_norm.weight", _one_more),
        layer_rule("attention.post_norm.weight", "attention_post_norm.weight", _one_more),
        layer_rule("attention.qkv.{w}", "attention.qkv.{w}", reordered(0, rows)),
        layer_rule("attention.query_norm.weight", "attention.query_scale", scale),
        layer_rule("attention.key_norm.weight", "attention.key_scale", scale),
        layer_rule("mlp.post_norm.weight", "mlp_post_norm.weight", _one_more),
        layer_rule("mlp.gate_proj.{w}", "mlp.gate.{w}"),  # joined with `up` in the end
        layer_rule("mlp.up_proj.{w}", "mlp.up.{w}"),
        layer_rule("mlp.down_proj.{w}", "mlp.down.{w}"),
        layer_rule("adaLN_modulation.1.{w}", "adaln.proj.{w}"),
        *(rms_norms if config.norm == "rms" else []),
        *LAYER_RULES,
        # Constants, kept by the peer for old checkpoints.
        *(Rule(name, None) for name in ("blocks.{i}.attn_mask", "var", *tables)),
    ]


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
