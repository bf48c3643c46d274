"""Conversion of the SiT of REPA-E (commit 3ad8046): weights, projector and latent statistics.

Key map, host -> ours (`{i}` counts layers from 0; w/b: `.weight` and `.bias`):

    x_embedder.proj w/b                    -> backbone.patch_embed
    t_embedder.mlp.0 / .2 w/b              -> backbone.time_embed.mlp_in / .mlp_out
    y_embedder.embedding_table.weight      -> backbone.label_embed.table.weight (last row: no label)
    blocks.{i}.attn.qkv / .proj w/b        -> backbone.layers.{i}.attention.qkv / .out
    blocks.{i}.attn.q_norm / .k_norm w/b   -> backbone.layers.{i}.attention.q_norm / .k_norm
    blocks.{i}.mlp.fc1 / .fc2 w/b          -> backbone.layers.{i}.mlp.0 / .2
    blocks.{i}.adaLN_modulation.1 w/b      -> backbone.layers.{i}.modulation (shift, scale, gate; twice)
    final_layer.adaLN_modulation.1 w/b     -> backbone.head.modulation
    final_layer.linear w/b                 -> backbone.head.linear
    projectors.0.0 / .2 / .4 w/b           -> alignment.projector.layers.0 / .2 / .4
    bn.running_mean / .running_var / .num_batches_tracked -> latent_norm
    pos_embed                              -> none: computed; compared with ours

Conventions that agree: t (0 data, 1 noise), the order of the six modulations, the order inside a patch, the
null label's row. Not the same: the host de-normalises samples by sqrt(var), we by sqrt(var + eps), the exact
inverse; its `cfg_scale` is our 1 + guidance.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from simflow_plugin.contracts import AlignmentContext, ModelContext
from simflow_plugin.diffusion.options import PUBLISHED_SIZES, BackboneOptions
from simflow_plugin.errors import WeightsError
from simflow_plugin.models.sit import SiT, SiTOptions
from simflow_plugin.weights import load_strictly, without_wrappers

RENAMED = (
    (r"x_embedder\.proj\.", "backbone.patch_embed."),
    (r"t_embedder\.mlp\.0\.", "backbone.time_embed.mlp_in."),
    (r"t_embedder\.mlp\.2\.", "backbone.time_embed.mlp_out."),
    (r"y_embedder\.embedding_table\.", "backbone.label_embed.table."),
    (r"blocks\.(\d+)\.attn\.proj\.", r"backbone.layers.\1.attention.out."),
    (r"blocks\.(\d+)\.attn\.", r"backbone.layers.\1.attention."),
    (r"blocks\.(\d+)\.mlp\.fc1\.", r"backbone.layers.\1.mlp.0."),
    (r"blocks\.(\d+)\.mlp\.fc2\.", r"backbone.layers.\1.mlp.2."),
    (r"blocks\.(\d+)\.adaLN_modulation\.1\.", r"backbone.layers.\1.modulation."),
    (r"final_layer\.adaLN_modulation\.1\.", "backbone.head.modulation."),
    (r"final_layer\.linear\.", "backbone.head.linear."),
    (r"projectors\.0\.", "alignment.projector.layers."),
    (r"bn\.", "latent_norm."),
)
POSITIONS_KEY = "pos_embed"
POSITIONS_TOLERANCE = 1e-5
"""Of float32; a table in half precision is compared to the rounding error of its type."""


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
    expected = model.state_dict()
    converted: dict[str, Tensor] = {}
    for host_key, tensor in without_wrappers(state_dict, "repa-e").items():
        if host_key == POSITIONS_KEY:
            _check_positions(tensor, model.backbone.positions)
            continue
        key = rename(host_key)
        if _is_left_out(key, model):
            continue
        if key not in expected:
            raise WeightsError(
                f"repa-e: `{host_key}` becomes `{key}`, which this SiT does not have. Check backbone.depth, "
                "uses_qk_norm and num_classes; a second projector is not supported."
            )
        converted[key] = _with_null_label(key, tensor, expected[key])
    remedy = (
        "Check backbone.depth, size and patch_size, uses_qk_norm, latent channels and num_classes, and that these are "
        "not the weights of the autoencoder."
    )
    load_strictly(model, converted, "repa-e", remedy)
    return model.eval()


def describe_repa_e(
    state_dict: Mapping[str, Tensor],
    num_heads: int | None = None,
    interpolant: Literal["linear", "cosine"] = "linear",
    alignment_layer: int = 8,
    num_classes: int | None = None,
) -> tuple[SiTOptions, ModelContext]:
    """Read options and context for `from_repa_e` off the shapes of the host's weights.

    Args:
        state_dict: as in `from_repa_e`.
        num_heads: not visible in any shape; None takes that of the published size of this width.
        interpolant: the host's `path_type`, which is not in the weights either.
        alignment_layer: the host's `encoder_depth`.
        num_classes: None takes the rows of the label table but the last, the null label of a host trained with label
            dropout; without dropout there is no such row, and the weights do not show which.
    Raises:
        WeightsError: if a tensor is missing, or `num_heads` is needed.
    """
    host = without_wrappers(state_dict, "repa-e")
    needed = (
        "x_embedder.proj.weight",
        POSITIONS_KEY,
        "y_embedder.embedding_table.weight",
        "blocks.0.mlp.fc1.weight",
    )
    for key in needed:
        if key not in host:
            raise WeightsError(
                f"repa-e: the weights have no `{key}`. Is this the `ema` or `model` of a checkpoint?"
            )
    width, channels, patch, _ = host["x_embedder.proj.weight"].shape
    depth = 1 + max(int(key.split(".")[1]) for key in host if key.startswith("blocks."))
    side = math.isqrt(host[POSITIONS_KEY].shape[1]) * patch
    heads = num_heads or {size[0]: size[2] for size in PUBLISHED_SIZES.values()}.get(width)
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
        alignment = AlignmentContext(feature_dim, alignment_layer, projector_dim)
    num_rows = host["y_embedder.embedding_table.weight"].shape[0]
    if num_classes not in (None, num_rows, num_rows - 1):
        raise WeightsError(
            f"repa-e: num_classes is {num_classes}, but the table of labels has {num_rows} rows: one for each class, "
            "and one more if labels were dropped in training."
        )
    num_classes = num_rows - 1 if num_classes is None else num_classes
    options = SiTOptions(
        backbone=backbone, interpolant=interpolant, normalizes_latents="bn.running_mean" in host
    )
    return options, ModelContext((channels, side, side), num_classes, alignment)


def rename(host_key: str) -> str:
    """Return our name for a tensor of the host's SiT.

    Raises:
        WeightsError: for a name that the host's SiT does not have.
    """
    for pattern, replacement in RENAMED:
        key, count = re.subn(f"^{pattern}", replacement, host_key)
        if count:
            return key
    raise WeightsError(f"repa-e: `{host_key}` is no tensor of the SiT of REPA-E at 3ad8046.")


def _is_left_out(key: str, model: SiT) -> bool:
    if key.startswith("latent_norm."):
        return model.latent_norm is None
    if key.startswith("alignment."):
        return model.alignment is None
    return False


def _with_null_label(key: str, tensor: Tensor, expected: Tensor) -> Tensor:
    """Append the row of no label, zero, to a table trained without label dropout, which has none."""
    if key == "backbone.label_embed.table.weight" and tensor.shape[0] == expected.shape[0] - 1:
        return torch.cat([tensor, tensor.new_zeros(1, tensor.shape[1])])
    return tensor


def _check_positions(host: Tensor, ours: Tensor) -> None:
    tolerance = max(POSITIONS_TOLERANCE, torch.finfo(host.dtype).eps) if host.is_floating_point() else 0.0
    if host.shape != ours.shape or not bool((host.float() - ours).abs().max() <= tolerance):
        raise WeightsError(
            f"repa-e: `{POSITIONS_KEY}` {tuple(host.shape)} is not the sine-cosine table {tuple(ours.shape)} "
            "of this grid. Check the latent shape and patch_size; other positions are not supported."
        )
