"""Options of the diffusion models: sit and dit."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from simflow_plugin.diffusion.options import (
    NUM_TRAIN_STEPS,
    DiffusionFacts,
    DiffusionOptions,
    SamplingOptions,
)
from simflow_plugin.options import Options
from simflow_plugin.registry import MODELS


class SiTSampling(SamplingOptions):
    """Sampler of SiT."""

    method: Literal["euler", "heun", "euler_maruyama"] = Field(
        default="euler", description="ODE (first two) or SDE"
    )


class SiTOptions(DiffusionOptions):
    """Options of `model: sit`."""

    interpolant: Literal["linear", "cosine"] = Field(
        default="linear", description="cosine is variance preserving (GVP)"
    )
    time_sampling: Literal["uniform", "log_normal"] = Field(
        default="uniform", description="distribution of the training times t in [0, 1]"
    )
    normalizes_latents: bool = Field(
        default=False, description="batch norm without affine parameters on latents (REPA-E)"
    )
    norm_momentum: float = Field(
        default=0.1, gt=0, le=1, description="of the running statistics of that batch norm"
    )
    sampling: SiTSampling = SiTSampling()


class DiTSampling(SamplingOptions):
    """Sampler of DiT."""

    num_steps: int = Field(default=250, ge=1, le=NUM_TRAIN_STEPS, description="DDIM steps from noise to data")
    eta: float = Field(
        default=0.0, ge=0, le=1, description="0: deterministic DDIM; 1: as much noise a step as DDPM"
    )


class DiTOptions(DiffusionOptions):
    """Options of `model: dit`."""

    sampling: DiTSampling = DiTSampling()


@MODELS.declare("sit", "simflow_plugin.models.sit")
class SiTFacts(DiffusionFacts):
    """Facts of `model: sit`."""

    Options: ClassVar[type[Options]] = SiTOptions


@MODELS.declare("dit", "simflow_plugin.models.dit")
class DiTFacts(DiffusionFacts):
    """Facts of `model: dit`."""

    Options: ClassVar[type[Options]] = DiTOptions
