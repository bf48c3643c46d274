"""Sizes and options of a convolutional autoencoder: by default, by name, as written, or read off others' weights.

`Architecture` is what an option, a diffusers config and the tensor shapes of a checkpoint have in common, so that each
of them can be the source of the same network. Importing this file imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count, takewhile
from typing import TYPE_CHECKING, Any

from simflow_plugin.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from torch import Tensor

    from simflow_plugin.contracts import PosteriorHead

DEFAULT_WIDTHS = {
    1: (64,),
    2: (64, 128),
    4: (128, 256, 512),
    8: (128, 256, 512, 512),
    16: (128, 128, 256, 256, 512),
    32: (128, 128, 256, 256, 512, 512),
}
"""Channels by level for each factor; f8 is that of SD-VAE, f16 that of VA-VAE and the REPA-E host."""


NAMED_ARCHITECTURES: dict[str, dict[str, Any]] = {
    # SimFlow's own, `vae_f16d64`: that of the REPA-E host's f16d32 with 64 channels (the name is read, the rest of it
    # inferred). The host counts attention by resolution, 16 for images of 256: the coarsest level.
    "f16d64": {
        "factor": 16,
        "latent_channels": 64,
        "widths": [128, 128, 256, 256, 512],
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "uses_mid_attention": True,
        "attention_levels": [4],
        "uses_quant_conv": True,
    },
}
"""Options that a name fills in. Its encoder has no log-variance where the posterior's variance is fixed."""


@dataclass(frozen=True)
class Architecture:
    """Sizes and options of the network.

    Args:
        widths: channels by level, finest first; each level after the first halves the resolution.
        latent_channels: C.
        layers_per_block: residual layers of each encoder level (the decoder has one more).
        norm_num_groups: groups of the group norms; divides every width.
        uses_mid_attention: whether the coarsest level attends between its two middle layers.
        attention_levels: levels (0 = finest) with attention after every residual layer.
        uses_quant_conv: whether 1x1 convolutions follow the encoder and precede the decoder.
    Raises:
        ConfigError: if the numbers do not fit each other.
    """

    widths: tuple[int, ...]
    latent_channels: int
    layers_per_block: int = 2
    norm_num_groups: int = 32
    uses_mid_attention: bool = True
    attention_levels: tuple[int, ...] = ()
    uses_quant_conv: bool = False

    def __post_init__(self) -> None:
        unfit = [width for width in self.widths if width % self.norm_num_groups]
        if unfit:
            raise ConfigError(
                f"norm_num_groups: {self.norm_num_groups} does not divide the width {unfit[0]} of widths "
                f"{list(self.widths)}; choose another number of groups or other widths"
            )
        outside = [level for level in self.attention_levels if not 0 <= level < len(self.widths)]
        if outside:
            raise ConfigError(
                f"attention_levels: there is no level {outside[0]}; with widths {list(self.widths)} levels "
                f"are 0 to {len(self.widths) - 1}"
            )

    @property
    def factor(self) -> int:
        """Pixels per latent pixel, along one side."""
        return 2 ** (len(self.widths) - 1)

    def as_options(self) -> dict[str, Any]:
        """Return the options of `kl` that ask for this network."""
        values = {**asdict(self), "factor": self.factor}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def block_types(self) -> tuple[list[str], list[str]]:
        """Return diffusers' names of the encoder's blocks, finest first, and of the decoder's, coarsest first."""
        prefixes = ["Attn" if level in self.attention_levels else "" for level in range(len(self.widths))]
        down = [f"{prefix}DownEncoderBlock2D" for prefix in prefixes]
        return down, [f"{prefix}UpDecoderBlock2D" for prefix in reversed(prefixes)]

    def build(self, num_moments: int) -> Any:
        """Return a new AutoencoderKL whose encoder ends in `num_moments` channels (C or 2C)."""
        from diffusers import AutoencoderKL  # imported here: it takes seconds, and listing names needs none
        from torch import nn

        down, up = self.block_types()
        network: Any = AutoencoderKL(
            block_out_channels=self.widths,
            down_block_types=down,
            up_block_types=up,
            layers_per_block=self.layers_per_block,
            latent_channels=self.latent_channels,
            norm_num_groups=self.norm_num_groups,
            mid_block_add_attention=self.uses_mid_attention,
            use_quant_conv=self.uses_quant_conv,
            use_post_quant_conv=self.uses_quant_conv,
        )
        if num_moments == 2 * self.latent_channels:
            return network
        if self.uses_quant_conv:
            network.quant_conv = nn.Conv2d(network.quant_conv.in_channels, num_moments, 1)
        else:
            width = network.encoder.conv_out.in_channels
            network.encoder.conv_out = nn.Conv2d(width, num_moments, 3, padding=1)
        return network


def default_norm_groups(widths: Sequence[int]) -> int:
    """Return 32 groups where each group keeps four channels or more, fewer for narrow networks.

    A group of one channel would be instance norm, which erases each channel's mean intensity.
    """
    return math.gcd(32, *(max(width // 4, 1) for width in widths), *widths)


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
    if (down, up) != architecture.block_types():
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
        WeightsError: if the tensors that it is read from are missing.
    """

    def number_of(pattern: str) -> int:
        return sum(1 for _ in takewhile(lambda index: pattern.format(index) in state, count()))

    num_levels = number_of("encoder.down_blocks.{}.resnets.0.conv1.weight")
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
        layers_per_block=number_of("encoder.down_blocks.0.resnets.{}.conv1.weight"),
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
