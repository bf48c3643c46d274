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
    (".norm_out.", ".conv_norm_out."),
    (".down.{1}.", ".down_blocks.{1}."),
    (".block.{1}.", ".resnets.{1}."),
    (".attn.{1}.", ".attentions.{1}."),
    (".nin_shortcut.", ".conv_shortcut."),
    (".downsample.conv.", ".downsamplers.0.conv."),
    (".upsample.conv.", ".upsamplers.0.conv."),
    (".mid.block_1.", ".mid_block.resnets.0."),
    (".mid.block_2.", ".mid_block.resnets.1."),
    (".mid.attn_1.", ".mid_block.attentions.0."),
    (".attentions.{1}.norm.", ".attentions.{1}.group_norm."),
    (".attentions.{1}.{2}.", ".attentions.{1}.to_{2}."),
    (".attentions.{1}.proj_out.", ".attentions.{1}.to_out.0."),
)
"""Parts of names in LDM and in diffusers, applied in this order, and backwards for the inverse.

{1} is a number, {2} is q, k or v.
"""
CURRENT_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of attention in diffusers before version 0.15, under which the fine-tuned SD-VAEs are published, and now."""
EARLIER_ATTENTION = re.compile(rf"(\.attentions\.\d+)\.({'|'.join(CURRENT_ATTENTION)})\.")
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
        for ldm, diffusers in reversed(RULES):
            name = _replaced(name, diffusers, ldm)
        renamed[UP_BLOCK.sub(lambda match: f"decoder.up.{num_levels - 1 - int(match[1])}.", name)] = shaped
    return renamed


def diffusers_name(name: str, num_levels: int) -> str:
    """Return diffusers' name for the LDM name of a tensor, in a network of `num_levels` levels."""
    name = UP_LEVEL.sub(lambda match: f"decoder.up_blocks.{num_levels - 1 - int(match[1])}.", name)
    for ldm, diffusers in RULES:
        name = _replaced(name, ldm, diffusers)
    return name


def _replaced(name: str, old: str, new: str) -> str:
    pattern = old.replace(".", r"\.").replace("{1}", r"(\d+)").replace("{2}", "(q|k|v)")
    return re.sub(pattern, new.replace("{1}", r"\1").replace("{2}", r"\2"), name)
