"""The shape of a convolutional autoencoder, and diffusers' AutoencoderKL built from it.

`Architecture` is what an option, a diffusers config and the tensor shapes of a checkpoint have in common, so
that each of them can be the source of the same network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from simflow_plugin.autoencoders.architecture import (
    Architecture,
    default_norm_groups,
)
from simflow_plugin.contracts import PosteriorHead
from simflow_plugin.errors import WeightsError


def architecture_from_config(config: Mapping[str, Any], source: str) -> Architecture:
    """Read diffusers' `config.json` of an AutoencoderKL.

    Raises:
        WeightsError: if it is of another class, or asks for something this wrapper does not build.
    """
    needed = ("down_block_types", "up_block_types", "block_out_channels", "latent_channels")
    absent = [key for key in needed if key not in config]
    if absent:
        raise WeightsError(f"{source}: config.json does not state {', '.join(absent)} of an AutoencoderKL")
    name = config.get("_class_name", "AutoencoderKL")
    if name != "AutoencoderKL":
        raise WeightsError(f"{source}: config.json is of a {name}; expected an AutoencoderKL")
    down, up = list(config["down_block_types"]), list(config["up_block_types"])
    levels = tuple(level for level, kind in enumerate(down) if kind == "AttnDownEncoderBlock2D")
    quant = {config.get("use_quant_conv", True), config.get("use_post_quant_conv", True)}
    if len(quant) > 1 or config.get("act_fn", "silu") != "silu" or config.get("in_channels", 3) != 3:
        raise WeightsError(
            f"{source}: expected 3 image channels, SiLU, and both or none of quant_conv and post_quant_conv"
        )
    architecture = Architecture(
        widths=tuple(config["block_out_channels"]),
        latent_channels=config["latent_channels"],
        layers_per_block=config.get("layers_per_block", 1),
        norm_num_groups=config.get("norm_num_groups", 32),
        uses_mid_attention=config.get("mid_block_add_attention", True),
        attention_levels=levels,
        uses_quant_conv=quant.pop(),
    )
    expected_up = [
        architecture._block_type(level, "UpDecoderBlock2D") for level in reversed(range(len(down)))
    ]
    expected_down = [architecture._block_type(level, "DownEncoderBlock2D") for level in range(len(down))]
    if down != expected_down or up != expected_up:
        raise WeightsError(
            f"{source}: block types {down} and {up} are not those of a convolutional AutoencoderKL"
        )
    return architecture


def architecture_from_state(
    state: Mapping[str, Tensor], source: str, norm_num_groups: int | None
) -> Architecture:
    """Read the architecture off a state dict in diffusers' layout.

    Args:
        state: tensors by diffusers' names.
        source: file, for messages.
        norm_num_groups: cannot be seen in the weights; None for the default of the widths.
    Raises:
        WeightsError: if the tensors that tell it are missing.
    """

    def count(pattern: str) -> int:
        index = 0
        while pattern.format(index) in state:
            index += 1
        return index

    num_levels = count("encoder.down_blocks.{}.resnets.0.conv1.weight")
    if not num_levels or "decoder.conv_in.weight" not in state:
        raise WeightsError(
            f"{source}: not a convolutional autoencoder; expected "
            f"encoder.down_blocks.0.resnets.0.conv1.weight and decoder.conv_in.weight, found "
            f"{', '.join(sorted(state)[:4]) or 'no tensor'}, ..."
        )
    resnets = [state[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"] for level in range(num_levels)]
    widths = tuple(int(weight.shape[0]) for weight in resnets)
    return Architecture(
        widths=widths,
        latent_channels=int(state["decoder.conv_in.weight"].shape[1]),
        layers_per_block=count("encoder.down_blocks.0.resnets.{}.conv1.weight"),
        norm_num_groups=default_norm_groups(widths) if norm_num_groups is None else norm_num_groups,
        uses_mid_attention="encoder.mid_block.attentions.0.to_q.weight" in state,
        attention_levels=tuple(
            level
            for level in range(num_levels)
            if f"encoder.down_blocks.{level}.attentions.0.to_q.weight" in state
        ),
        uses_quant_conv="quant_conv.weight" in state,
    )


def moments_prefix(state: Mapping[str, Tensor]) -> str:
    """Return the name of the convolution that returns the moments: `quant_conv`, or `encoder.conv_out`."""
    return "quant_conv" if "quant_conv.weight" in state else "encoder.conv_out"


def select_moments(state: Mapping[str, Tensor], head: PosteriorHead) -> dict[str, Tensor]:
    """Return `state` with those first output channels of the moments' convolution that `head` keeps.

    From (mean, log-variance) a fixed-variance posterior keeps the mean, that of the encoder it came from.

    Raises:
        WeightsError: if the channels are not what the head reads.
    """
    prefix = moments_prefix(state)
    if f"{prefix}.weight" not in state:
        return dict(state)  # a strict load names the tensors that are missing
    num_moments = head.kept_moments(len(state[f"{prefix}.weight"]))
    kept = {f"{prefix}.weight", f"{prefix}.bias"}
    return {name: value[:num_moments] if name in kept else value for name, value in state.items()}
