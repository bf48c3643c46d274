"""Conversion of the SiT of REPA-E (commit 3ad8046): weights, projector and latent statistics.

Conventions that agree: t (0 data, 1 noise), the order of the six modulations, the order inside a patch, the
null label's row. Not the same: the host de-normalises samples by sqrt(var), we by sqrt(var + eps), the exact
inverse; its `cfg_scale` is our 1 + guidance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from simflow_plugin.contracts import AlignmentContext, ModelContext
from simflow_plugin.convert.arguments import PeerArguments
from simflow_plugin.convert.renaming import Rule, convert_tensors
from simflow_plugin.diffusion.options import PUBLISHED_SIZES, BackboneOptions
from simflow_plugin.errors import WeightsError
from simflow_plugin.models.sit import SiT, SiTOptions
from simflow_plugin.weights import load_strictly, without_wrappers

PEER = "repa-e"
ANCHOR = "x_embedder.proj.weight"
LABEL_TABLE = "backbone.label_embed.table.weight"
REMEDY = (
    "Check backbone.depth, size and patch_size, uses_qk_norm, latent channels and num_classes, and that these are the "
    "weights of the SiT of REPA-E at 3ad8046, not of the autoencoder; a second projector is not supported."
)
POSITIONS_KEY = "pos_embed"
POSITIONS_TOLERANCE = 1e-5
"""Of float32; a table in half precision is compared to the rounding error of its type."""
RULES = (
    Rule("x_embedder.proj.{w}", "backbone.patch_embed.{w}"),
    Rule("t_embedder.mlp.0.{w}", "backbone.time_embed.mlp_in.{w}"),
    Rule("t_embedder.mlp.2.{w}", "backbone.time_embed.mlp_out.{w}"),
    Rule("y_embedder.embedding_table.weight", LABEL_TABLE),  # last row: no label
    Rule("blocks.{i}.attn.qkv.{w}", "backbone.layers.{i}.attention.qkv.{w}"),
    Rule("blocks.{i}.attn.proj.{w}", "backbone.layers.{i}.attention.out.{w}"),
    Rule("blocks.{i}.attn.q_norm.{w}", "backbone.layers.{i}.attention.q_norm.{w}"),
    Rule("blocks.{i}.attn.k_norm.{w}", "backbone.layers.{i}.attention.k_norm.{w}"),
    Rule("blocks.{i}.mlp.fc1.{w}", "backbone.layers.{i}.mlp.0.{w}"),
    Rule("blocks.{i}.mlp.fc2.{w}", "backbone.layers.{i}.mlp.2.{w}"),
    Rule(
        "blocks.{i}.adaLN_modulation.1.{w}", "backbone.layers.{i}.modulation.{w}"
    ),  # shift, scale, gate; twice
    Rule("final_layer.adaLN_modulation.1.{w}", "backbone.head.modulation.{w}"),
    Rule("final_layer.linear.{w}", "backbone.head.linear.{w}"),
    Rule("projectors.0.{i}.{w}", "alignment.projector.layers.{i}.{w}"),
    Rule("bn.running_mean", "latent_norm.running_mean"),
    Rule("bn.running_var", "latent_norm.running_var"),
    Rule("bn.num_batches_tracked", "latent_norm.num_batches_tracked"),
    Rule(POSITIONS_KEY, None),  # computed; compared with ours
)


class RepaEArguments(PeerArguments):
    """Arguments of the host's `SiT` that its weights do not show."""

    peer = PEER
    # Read off the weights' shapes, or without a part in inference.
    ignored = frozenset(
        {
            "input_size",
            "patch_size",
            "in_channels",
            "hidden_size",
            "decoder_hidden_size",
            "depth",
            "mlp_ratio",
            "class_dropout_prob",
            "use_cfg",
            "z_dims",
            "projector_dim",
            "bn_momentum",
            "qk_norm",
            "fused_attn",
        }
    )

    num_heads: int | None = Field(
        None, gt=0, description="None takes that of the published size of this width."
    )
    path_type: Literal["linear", "cosine"] = "linear"
    encoder_depth: int = Field(8, gt=0)
    num_classes: int | None = Field(
        None,
        gt=0,
        description="None takes the rows of the label table but the last, the null label of a host trained with "
        "label dropout; without dropout there is no such row, and the weights do not show which.",
    )


def from_repa_e(state_dict: Mapping[str, Tensor], options: SiTOptions, context: ModelContext) -> SiT:
    """Build our SiT with the weights of the host's.

    Args:
        state_dict: of the host's `SiT` (in a checkpoint: `ema` or `model`), of any floating type; what wrappers add to
            names is cut.
        options: of the same size, patch and interpolant; `normalizes_latents` and `context.alignment` decide
            whether the host's batch norm and projector are taken over or left out.
        context: the host's latent shape, its number of classes, and its projector's size.
    Returns:
        The model, in evaluation mode.
    Raises:
        WeightsError: for a missing, unknown or wrongly shaped tensor, or positions other than sine-cosine.
    Reference:
        REPA-E, arXiv:2504.10483.
    """
    model = SiT(options, context)
    host = without_wrappers(state_dict, PEER)
    if POSITIONS_KEY in host:
        _check_positions(host[POSITIONS_KEY], model.backbone.positions)
    parts = {"latent_norm.": model.latent_norm, "alignment.": model.alignment}
    left_out = tuple(prefix for prefix, part in parts.items() if part is None)
    converted = {
        name: tensor
        for name, tensor in convert_tensors(host, RULES, PEER, REMEDY).items()
        if not name.startswith(left_out)
    }
    table, expected = converted.get(LABEL_TABLE), model.state_dict().get(LABEL_TABLE)
    if table is not None and expected is not None and table.shape == expected[:-1].shape:
        # Trained without label dropout, it has no row for no label.
        converted[LABEL_TABLE] = functional.pad(table, (0, 0, 0, 1))
    load_strictly(model, converted, PEER, f"Names are ours. {REMEDY}")
    return model.eval()


def describe_repa_e(
    state_dict: Mapping[str, Tensor], arguments: RepaEArguments
) -> tuple[SiTOptions, ModelContext]:
    """Read options and context for `from_repa_e` off the shapes of the host's weights, and `arguments`.

    Raises:
        WeightsError: if a tensor is missing, or `num_heads` is needed.
    """
    host = without_wrappers(state_dict, PEER)
    needed = (ANCHOR, POSITIONS_KEY, "y_embedder.embedding_table.weight", "blocks.0.mlp.fc1.weight")
    for key in needed:
        if key not in host:
            raise WeightsError(
                f"repa-e: the weights have no `{key}`. Is this the `ema` or `model` of a checkpoint?"
            )
    width, channels, patch, _ = host[ANCHOR].shape
    depth = 1 + max(int(key.split(".")[1]) for key in host if key.startswith("blocks."))
    side = math.isqrt(host[POSITIONS_KEY].shape[1]) * patch
    heads = arguments.num_heads or {size[0]: size[2] for size in PUBLISHED_SIZES.values()}.get(width)
    if heads is None:
        raise WeightsError(f"repa-e: width {width} is no published size, so num_heads must be given.")
    backbone = BackboneOptions(
        patch_size=patch,
        width=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=host["blocks.0.mlp.fc1.weight"].shape[0] / width,
        uses_qk_norm="blocks.0.attn.q_norm.weight" in host,
    )
    alignment = None
    if "projectors.0.0.weight" in host:
        feature_dim, projector_dim = host["projectors.0.4.weight"].shape
        alignment = AlignmentContext(feature_dim, arguments.encoder_depth, projector_dim)
    num_rows = host["y_embedder.embedding_table.weight"].shape[0]
    if arguments.num_classes not in (None, num_rows, num_rows - 1):
        raise WeightsError(
            f"repa-e: num_classes is {arguments.num_classes}, but the table of labels has {num_rows} rows: one for "
            "each class, and one more if labels were dropped in training."
        )
    options = SiTOptions(
        backbone=backbone, interpolant=arguments.path_type, normalizes_latents="bn.running_mean" in host
    )
    return options, ModelContext((channels, side, side), arguments.num_classes or num_rows - 1, alignment)


def _check_positions(host: Tensor, ours: Tensor) -> None:
    tolerance = max(POSITIONS_TOLERANCE, torch.finfo(host.dtype).eps) if host.is_floating_point() else 0.0
    if host.shape != ours.shape or not bool((host.float() - ours).abs().max() <= tolerance):
        raise WeightsError(
            f"repa-e: `{POSITIONS_KEY}` {tuple(host.shape)} is not the sine-cosine table {tuple(ours.shape)} "
            "of this grid. Check the latent shape and patch_size; other positions are not supported."
        )
