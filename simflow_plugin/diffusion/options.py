"""Options of the diffusion models: network, label dropout, guidance, what all samplers share."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from simflow_plugin.contexts import ModelContext, ModelFacts
from simflow_plugin.errors import ConfigError
from simflow_plugin.options import Options, Size
from simflow_plugin.registry import DIFFUSION_GUIDANCE, Part

PUBLISHED_SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}
"""(width, depth, num_heads) by size, from DiT, table 1."""


class BackboneOptions(Options):
    """A published size, of which `width`, `depth` and `num_heads` override single numbers where given."""

    size: Literal["S", "B", "L", "XL"] = Field(
        default="B", description="published size; XL/2 has 675 M parameters"
    )
    patch_size: Size = Field(
        default=2, description="latent elements per token and side; published: 1, 2, 4, 8"
    )
    width: Size | None = Field(
        default=None, ge=4, description="channels of the hidden tokens, divisible by 4; null: by size"
    )
    depth: Size | None = Field(default=None, description="layers; null: by size")
    num_heads: Size | None = Field(
        default=None, description="attention heads, a divisor of width; null: by size"
    )
    mlp_ratio: float = Field(default=4.0, gt=0, description="hidden width of the MLP as a multiple of width")
    uses_qk_norm: bool = Field(default=False, description="layer norm of queries and keys")
    uses_activation_checkpointing: bool = Field(
        default=False, description="recompute layers in backward: less memory, slower"
    )

    @property
    def dimensions(self) -> tuple[int, int, int]:
        """(width, depth, num_heads) after overrides."""
        width, depth, num_heads = PUBLISHED_SIZES[self.size]
        return self.width or width, self.depth or depth, self.num_heads or num_heads

    @model_validator(mode="after")
    def _dimensions_fit(self) -> BackboneOptions:
        width, _, num_heads = self.dimensions
        if width % num_heads or width % 4:
            raise ValueError(
                f"width {width} must be divisible by num_heads {num_heads} and by 4 (sine-cosine positions); "
                "set width and num_heads together"
            )
        return self

    def check_grid(self, latent_shape: tuple[int, int, int]) -> tuple[int, int]:
        """Return the grid (h, w) in tokens of latents (C, h, w).

        Raises:
            ConfigError: if the patch size does not divide it.
        """
        _, height, width = latent_shape
        if height % self.patch_size or width % self.patch_size:
            raise ConfigError(
                f"model.backbone.patch_size {self.patch_size} does not divide the latent grid "
                f"{height} x {width}. Change the patch size, image_size or the autoencoder's factor."
            )
        return height // self.patch_size, width // self.patch_size


@DIFFUSION_GUIDANCE.declare("classifier_free", "simflow_plugin.diffusion.guidance")
class GuidanceOptions(Options):
    """Options of a guidance rule: the times in which it acts; shared by all rules."""

    interval: tuple[float, float] = Field(
        default=(0.0, 1.0),
        description="[low, high] in t, both included, in which guidance acts; 0 is data, 1 is noise",
    )

    @field_validator("interval")
    @classmethod
    def _interval_is_valid(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] < value[1] <= 1:
            raise ValueError(
                f"interval is {list(value)}, but it must lie in [0, 1] with low < high (t = 0 is data, t = 1 is "
                "noise); [0, 1] guides everywhere"
            )
        return value


class SamplingOptions(Options):
    """Options of every sampler of a diffusion model."""

    num_steps: int = Field(default=250, ge=1, description="steps from noise to data")
    guidance_rule: Annotated[Part, DIFFUSION_GUIDANCE] = Field(
        Part(name="classifier_free"), description="a name, or a mapping with a name and the rule's options"
    )


class DiffusionOptions(Options):
    """Options of every diffusion model."""

    backbone: BackboneOptions = BackboneOptions()
    label_dropout: float = Field(
        default=0.1, ge=0, lt=1, description="share of rows trained without their label"
    )

    def check(self, context: ModelContext) -> None:
        self.backbone.check_grid(context.latent_shape)
        _, depth, _ = self.backbone.dimensions
        if context.alignment is not None and not 1 <= context.alignment.layer <= depth:
            raise ConfigError(
                f"alignment.layer is {context.alignment.layer}, but the model has hidden tokens after layers "
                f"1 to {depth} only."
            )
        if context.guidance > 0 and self.label_dropout == 0:
            raise ConfigError(
                f"sampling.guidance {context.guidance} needs an unconditional model, but model.label_dropout is 0. "
                "Set model.label_dropout (0.1, say) or sampling.guidance: 0."
            )

    autoencoder_pass: Literal["evaluation", "training"] = Field(
        default="evaluation",
        description="what the alignment's gradient for the autoencoder (REPA-E) is taken through. evaluation: a pass "
        "of its own without label dropout and with the running statistics of the latents' norm, as in the REPA-E "
        "host; training: the model's own pass, which is cheaper",
    )


NUM_TRAIN_STEPS = 1000


class DiffusionFacts(ModelFacts):
    """Facts of the diffusion models.

    Only the alignment's gradient may reach the autoencoder: the denoising loss would flatten the latents (REPA-E,
    arXiv:2504.10483, section 3.1).
    """

    coupled_terms: ClassVar[frozenset[str]] = frozenset({"alignment"})
    supports_alignment = True
    supports_autoguidance = True
