"""Base of the flow in a host codebase: losses of normalised latents, and samples from the host's noise.

The host draws random numbers and keeps the schedule; here are the conversions that hosts share:
labels, features of another grid, the guidance weight. What a host calls its arguments is in its own file.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from simflow_plugin.alignment.head import Projector, alignment_loss
from simflow_plugin.contracts import NO_LABEL, ModelContext
from simflow_plugin.errors import ConfigError, HostError
from simflow_plugin.flow import SIZES, FlowArchitecture
from simflow_plugin.models.simflow import SimFlow, SimFlowOptions
from simflow_plugin.models.starflow import StarFlow, StarFlowOptions

Family = Literal["SimFlow", "STARFlow"]
PATCH_SIZES = (1, 2)
SHAPE = {"width", "layers_per_block", "head_dim"}
PROJECTOR_DIM = 2048


@dataclass(frozen=True)
class FlowKind:
    """Kind, size and patch size in a model's name, as in `SimFlow-B/2`.

    Args:
        family: `SimFlow` moves the encoder; `STARFlow` trains on noised latents of a frozen one.
        size: a key of `simflow_plugin.flow.SIZES`.
        patch_size: side of a patch in latent pixels.
        architecture: further options of `FlowArchitecture`, for a package that declares its own models.
    """

    family: Family
    size: str
    patch_size: int
    architecture: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        return f"{self.family}-{self.size}/{self.patch_size}"


def flow_kinds() -> list[FlowKind]:
    """Return every model that a host gets: both families in every size that only sets a shape, SimFlow in its own."""
    return [
        FlowKind(family, size, patch_size)
        for family in ("SimFlow", "STARFlow")
        for size, values in SIZES.items()
        if values.keys() <= SHAPE or (family == "SimFlow" and size.startswith("simflow-"))
        for patch_size in PATCH_SIZES
    ]


@dataclass(frozen=True, kw_only=True)
class HostArguments:
    """Keywords with which the hosts build a model; a host's own are in a class of its adapter.

    Args:
        input_size: side of the latents, in latent pixels.
        in_channels: C of the latents.
        num_classes: number of labels; a label of that value means none, as hosts write it.
        class_dropout_prob: fraction of training rows whose label is dropped.
        z_dims: channels of each frozen encoder's features.
        encoder_depth: layer of the deep block, counted from 1, whose hidden tokens are aligned.
        fused_attn: has no effect, and a warning where it is false.
        qk_norm: whether queries and keys are normalised.
    """

    input_size: int
    in_channels: int
    num_classes: int
    class_dropout_prob: float
    z_dims: Sequence[int]
    encoder_depth: int
    fused_attn: bool = True
    qk_norm: bool = False


class HostedLosses(NamedTuple):
    """Losses for a host's loop.

    `nll` (B,), nats per latent dimension, with the flow's regularisation if it has one; `alignment`, a scalar in
    [-1, 1]; `projected`, one (B, T, F) for each encoder; `noise` (B, C, h, w), the flow's output on the latent grid.
    """

    nll: Tensor
    alignment: Tensor
    projected: list[Tensor]
    noise: Tensor


class HostedFlow(nn.Module):
    """A flow and its projectors; a host's adapter inherits from it.

    Args:
        kind: family, size and patch.
        arguments: of the host.
    Raises:
        HostError: if they do not fit each other.
    """

    def __init__(self, kind: FlowKind, arguments: HostArguments) -> None:
        super().__init__()
        self.kind = kind
        self.arguments = arguments
        architecture = FlowArchitecture.model_validate(
            {
                "size": kind.size,
                "patch_size": kind.patch_size,
                "class_dropout": arguments.class_dropout_prob,
                "qk_norm": arguments.qk_norm,
                **dict(kind.architecture),
            }
        )
        if not 1 <= arguments.encoder_depth <= architecture.layers_per_block[-1]:
            raise HostError(
                f"{kind.name}: the deep block has {architecture.layers_per_block[-1]} layers, so layer "
                f"{arguments.encoder_depth} cannot be aligned; choose a smaller --encoder-depth"
            )
        if not arguments.fused_attn:
            warnings.warn(f"{kind.name}: --no-fused-attn has no effect on this model", stacklevel=3)
        shape = (arguments.in_channels, arguments.input_size, arguments.input_size)
        context = ModelContext(shape, arguments.num_classes)
        try:
            self.core = (
                SimFlow(SimFlowOptions(flow=architecture), context)
                if kind.family == "SimFlow"
                else StarFlow(StarFlowOptions(flow=architecture), context)
            )
        except ConfigError as error:
            raise HostError(
                f"{kind.name}: {error}. This host's latents are {shape} (channels, height, width); "
                "choose a model with another patch size (the number behind the slash), or another autoencoder"
            ) from error
        self.projectors = nn.ModuleList(
            Projector(architecture.width, PROJECTOR_DIM, feature_dim) for feature_dim in arguments.z_dims
        )

    @property
    def in_channels(self) -> int:
        """Channels of the latents."""
        return self.arguments.in_channels

    @property
    def moves_encoder(self) -> bool:
        """True where the gradient of the likelihood may reach an encoder."""
        return "nll" in self.core.coupled_terms

    def losses(
        self, latents: Tensor, labels: Tensor, features: Sequence[Tensor], uniform: Tensor, noise: Tensor
    ) -> HostedLosses:
        """Compute the likelihood and the alignment in one pass.

        Args:
            latents: (B, C, h, w), normalised.
            labels: (B,) int64; `num_classes` for none.
            features: (B, N, F) of each frozen encoder, raster order over a square grid of any size.
            uniform: (B,) in [0, 1): in training mode, rows below `class_dropout` lose their label.
            noise: (B, C, h, w), standard normal; what STARFlow adds to the latents, times its std.
        """
        if not self.training:
            uniform = torch.ones_like(uniform)  # drops no label
        layer = self.arguments.encoder_depth if features else None
        draws = _HostDraws(noise, uniform)
        output = self.core.likelihood(latents, self.known_labels(labels), draws, layer)
        projected = [projector(output.hidden) for projector in self.projectors] if features else []
        return HostedLosses(
            nll=-output.log_prob / latents[0].numel()
            + (0.0 if output.regularization is None else output.regularization),
            alignment=self._alignment(projected, features, output.log_prob),
            projected=projected,
            noise=self.core.latents(output.noise),
        )

    def _alignment(self, projected: list[Tensor], features: Sequence[Tensor], like: Tensor) -> Tensor:
        if len(projected) != len(features):
            raise HostError(
                f"{self.kind.name}: {len(projected)} projectors, but features of {len(features)} encoders"
            )
        if not projected:
            return like.new_zeros(())
        terms = [
            alignment_loss(tokens, self.core.grid_size, feature)
            for tokens, feature in zip(projected, features, strict=True)
        ]
        return torch.stack(terms).mean()

    def known_labels(self, labels: Tensor) -> Tensor:
        """Return labels with `NO_LABEL` where the host wrote `num_classes`, its own null label."""
        return torch.where(labels == self.arguments.num_classes, NO_LABEL, labels)

    @torch.no_grad()
    def draw(self, noise: Tensor, labels: Tensor, cfg_scale: float) -> Tensor:
        """Return normalised latents (B, C, h, w) from standard normal `noise` of that shape.

        Args:
            noise: the host's own draw, so that its seeds keep their meaning.
            labels: (B,) int64; `num_classes` for none.
            cfg_scale: the host's; 1 is no guidance. Ours is w = cfg_scale - 1.
        Raises:
            HostError: if it is below 1.
        """
        if cfg_scale < 1:
            raise HostError(f"{self.kind.name}: cfg_scale is {cfg_scale}; expected 1 (no guidance) or more")
        guidance = cfg_scale - 1
        if guidance > 0 and self.arguments.class_dropout_prob == 0:
            warnings.warn(
                f"{self.kind.name} was built with a class dropout of 0, so it knows no unconditional model: "
                f"sampling without guidance instead of cfg_scale {cfg_scale}. Train with --cfg-prob 0.1.",
                stacklevel=2,
            )
            guidance = 0.0
        noise = noise.to(torch.float32) if noise.dtype != torch.float64 else noise
        return self.core.sample(self.known_labels(labels), noise.shape, guidance, _HostDraws(noise))


def sample(
    model: Any,
    latents: Tensor,
    y: Tensor,
    *,
    heun: bool = False,
    cfg_scale: float = 1.0,
    guidance_low: float = 0.0,
    guidance_high: float = 1.0,
    num_steps: int | None = None,
    path_type: str | None = None,
) -> Tensor:
    """Sample by the signature of the host's samplers; `num_steps` and `path_type` have no effect on a flow.

    Args:
        model: a `HostedFlow`, compiled (torch.compile), distributed, or plain.
        latents: (N, C, h, w), standard normal.
        y: (N,) int64.
        cfg_scale: 1 + w.
    Returns:
        (N, C, h, w), normalised latents.
    Raises:
        HostError: for options that were set and would have no effect.
    """
    if heun or guidance_low > 0 or guidance_high < 1:
        raise HostError(
            "--heun, --guidance-low and --guidance-high are about the time steps of a diffusion; a flow has none. "
            "Leave them out"
        )
    for wrapper in ("module", "_orig_mod"):
        model = getattr(model, wrapper, model)
    return model.draw(latents, y, cfg_scale)


@dataclass(frozen=True)
class _HostDraws:
    """Named draws that are those which the host made: `noise` for every normal one, `uniform` (B,) for the labels."""

    noise: Tensor
    uniforms: Tensor | None = None

    def normal(self, purpose: str, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        return self.noise.to(device)

    def uniform(self, purpose: str, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        if self.uniforms is None:
            raise HostError(f"sampling draws no uniform numbers, asked for `{purpose}`")
        return self.uniforms.to(device)
