"""Names of the original latent-diffusion (LDM) autoencoder, turned into those of diffusers.

SD-VAE's own checkpoints and those of the REPA-E host (f8d4, f16d32) have this layout. LDM counts the
decoder's levels from the finest, diffusers in the order of computation; LDM writes the projections of
attention as 1x1 convolutions, diffusers as linear layers, under other names in its earlier versions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

RULES = (
    (r"\.norm_out\.", ".conv_norm_out."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"\.down\.(\d+)\.", r".down_blocks.\1."),
    (r"\.block\.(\d+)\.", r".resnets.\1."),
    (r"\.attn\.(\d+)\.", r".attentions.\1."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.downsample\.conv\.", ".downsamplers.0.conv."),
    (r"\.upsample\.conv\.", ".upsamplers.0.conv."),
    (r"(\.attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(\.attentions\.\d+)\.(q|k|v)\.", r"\1.to_\2."),
    (r"(\.attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
)
CURRENT_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of attention in diffusers before version 0.15, under which the fine-tuned SD-VAEs are published, and now."""
EARLIER_ATTENTION = re.compile(rf"(\.attentions\.\d+)\.({'|'.join(CURRENT_ATTENTION)})\.")
INVERSE_RULES = (
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"(\.attentions\.\d+)\.group_norm\.", r"\1.norm."),
    (r"(\.attentions\.\d+)\.to_(q|k|v)\.", r"\1.\2."),
    (r"(\.attentions\.\d+)\.to_out\.0\.", r"\1.proj_out."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.down_blocks\.(\d+)\.", r".down.\1."),
    (r"\.resnets\.(\d+)\.", r".block.\1."),
    (r"\.attentions\.(\d+)\.", r".attn.\1."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.downsamplers\.0\.conv\.", ".downsample.conv."),
    (r"\.upsamplers\.0\.conv\.", ".upsample.conv."),
)
UP_BLOCK = re.compile(r"^decoder\.up_blocks\.(\d+)\.")
UP_LEVEL = re.compile(r"^decoder\.up\.(\d+)\.")
PROJECTION = re.compile(r"\.attentions\.\d+\.to_(q|k|v|out\.0)\.weight$")


def is_ldm(state: Mapping[str, Tensor]) -> bool:
    """Return whether the names are those of an LDM autoencoder."""
    return any(name.startswith(("encoder.down.", "decoder.up.")) for name in state)


def ldm_to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of an LDM autoencoder under diffusers' names and in its shapes.

    A name that no rule knows is kept, so that a strict load reports it.
    """
    levels = [int(match[1]) for match in map(UP_LEVEL.match, state) if match]
    num_levels = 1 + max(levels, default=0)
    return with_current_attention({diffusers_name(name, num_levels): value for name, value in state.items()})


def with_current_attention(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of any version of diffusers with the attention of the current one: its names, linear layers."""
    renamed = {
        EARLIER_ATTENTION.sub(lambda match: f"{match[1]}.{CURRENT_ATTENTION[match[2]]}.", name): value
        for name, value in state.items()
    }
    return {
        name: value[:, :, 0, 0] if PROJECTION.search(name) and value.shape[2:] == (1, 1) else value
        for name, value in renamed.items()
    }


def diffusers_to_ldm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of diffusers' AutoencoderKL under LDM's names and in its shapes: the inverse of the above."""
    levels = [int(match[1]) for match in map(UP_BLOCK.match, state) if match]
    num_levels = 1 + max(levels, default=0)
    renamed = {}
    for name, value in state.items():
        shaped = value[:, :, None, None] if PROJECTION.search(name) else value
        for pattern, replacement in INVERSE_RULES:
            name = re.sub(pattern, replacement, name)
        renamed[UP_BLOCK.sub(lambda match: f"decoder.up.{num_levels - 1 - int(match[1])}.", name)] = shaped
    return renamed


def diffusers_name(name: str, num_levels: int) -> str:
    """Return diffusers' name for the LDM name of a tensor, in a network of `num_levels` levels."""
    name = UP_LEVEL.sub(lambda match: f"decoder.up_blocks.{num_levels - 1 - int(match[1])}.", name)
    for pattern, replacement in RULES:
        name = re.sub(pattern, replacement, name)
    return name
