"""The SiT of the REPA-E host (commit 3ad8046) turned into ours: weights, projector and latent statistics.

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
    projectors.0.0 / .2 / .4 w/b           -> alignment.projector.0 / .2 / .4
    bn.running_mean / .running_var / .num_batches_tracked -> latent_norm
    pos_embed                              -> none: computed; compared with ours

Conventions that agree: t (0 data, 1 noise), the order of the six modulations, the order inside a patch, the
null label's row. Not the same: the host de-normalises samples by sqrt(var), we by sqrt(var + eps), the exact
inverse; its `cfg_scale` is our 1 + guidance.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from simflow_plugin.contracts import ModelContext
from simflow_plugin.errors import WeightsError
from simflow_plugin.models.sit import SiT, SiTOptions

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
    (r"projectors\.0\.", "alignment.projector."),
    (r"bn\.", "latent_norm."),
)
POSITIONS_KEY = "pos_embed"
POSITIONS_TOLERANCE = 1e-5


def from_repa_e(state_dict: Mapping[str, Tensor], options: SiTOptions, context: ModelContext) -> SiT:
    """Build our SiT with the weights of the host's.

    Args:
        state_dict: of the host's `SiT` (of a checkpoint, its entry `ema` or `model`); a leading `module.` is cut.
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
    for host_key, tensor in state_dict.items():
        host_key = host_key.removeprefix("module.")
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
        tensor = _with_null_label(key, tensor, expected[key])
        if tensor.shape != expected[key].shape:
            raise WeightsError(
                f"repa-e: `{host_key}` has shape {tuple(tensor.shape)}, but `{key}` needs "
                f"{tuple(expected[key].shape)}. Check size, patch_size, latent channels and num_classes."
            )
        converted[key] = tensor
    missing = sorted(set(expected) - set(converted))
    if missing:
        raise WeightsError(
            f"repa-e: the weights lack {len(missing)} of {len(expected)} tensors of this SiT, first `{missing[0]}`. "
            "Check backbone.depth and uses_qk_norm, and that the file holds the model, not the autoencoder."
        )
    model.load_state_dict(converted)
    return model.eval()


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
    if host.shape != ours.shape or (host - ours).abs().max() > POSITIONS_TOLERANCE:
        raise WeightsError(
            f"repa-e: `{POSITIONS_KEY}` {tuple(host.shape)} is not the sine-cosine table {tuple(ours.shape)} of this "
            "grid. Check the latent shape and patch_size; learned or interpolated positions are not supported."
        )
