"""Options of the model `learned_inverse`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from simflow_plugin.contexts import ModelFacts
from simflow_plugin.diffusion.options import BackboneOptions
from simflow_plugin.learned_inverse.teacher_options import TeacherOptions
from simflow_plugin.options import Options
from simflow_plugin.registry import GUIDANCE, MODELS, RECONSTRUCTION_LOSSES, Part


class ImageLossOptions(Options):
    """A loss between the decoded prediction and the decoded target."""

    name: Annotated[str, RECONSTRUCTION_LOSSES] = Field("lpips", description="of the reconstruction loss.")
    weight: float = Field(1.0, gt=0, description="factor of this loss beside the error of the latents.")
    options: dict[str, Any] = Field(
        default_factory=dict, description="of the loss, as under objective.reconstruction."
    )


class LearnedSampling(Options):
    """Sampler of the student."""

    method: str | dict[str, Any] = Field(
        "learned",
        description="learned: one pass of the student; hybrid: exact, by Jacobi iteration from the student's guess; "
        "or a method of the teacher's exact inverse: cached, jacobi, auto, naive",
    )
    guidance_rule: Annotated[Part, GUIDANCE] = Field(
        Part(name="starflow"), description="of the exact inverse, and of the pairs that teach guidance"
    )


class LearnedInverseOptions(Options):
    """Options of `model: learned_inverse`."""

    teacher: TeacherOptions
    student: BackboneOptions = Field(default_factory=lambda: BackboneOptions.model_validate({"size": "S"}))
    sampling: LearnedSampling = Field(default_factory=lambda: LearnedSampling.model_validate({}))
    initial: Literal["random", "teacher"] = Field(
        "random", description="teacher: attention and MLP weights start as those of the teacher's layers."
    )
    guidance_max: float = Field(
        0.0, ge=0, description="one pass serves any guidance weight in [0, guidance_max]."
    )
    guidance_targets: Literal["exact", "extrapolated"] = Field(
        "exact",
        description="exact: data come with the noise from which guided sampling makes them, found in parallel, and "
        "random noise with its guided inverse; extrapolated: z + w (z - G(u, none)), with the student's "
        "own unconditional answer.",
    )
    exact_share: float = Field(
        0.25, ge=0, le=1, description="share of a batch that is random noise with its exact inverse."
    )
    class_dropout: float = Field(0.1, ge=0, lt=1, description="share of rows from data without their label.")
    state_weight: float = Field(
        1.0, ge=0, description="of the error of inner states against that of the latents."
    )
    input_noise: float = Field(
        0.0, ge=0, description="std of noise that is added to the student's input in training (FARMER)."
    )
    image_loss: ImageLossOptions | None = Field(
        None, description="compare decoded images too, by a perceptual loss say; null: latents only."
    )

    def resolved(self) -> LearnedInverseOptions:
        """Return the options with the teacher's model and checksum written out."""
        return self.model_copy(update={"teacher": self.teacher.resolved()})


@MODELS.declare("learned_inverse", "simflow_plugin.models.learned_inverse")
class LearnedInverseFacts(ModelFacts):
    """Facts of `model: learned_inverse`."""

    Options: ClassVar[type[Options]] = LearnedInverseOptions
