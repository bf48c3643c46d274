"""The run as its parts see it: what a part is built with, and what options are checked against; free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from simflow_plugin.errors import DataError
from simflow_plugin.options import Options

NO_LABEL = -1
"""The label of an image without one, and of a row whose label was dropped for guidance."""

SPLITS = ("train", "test")


@dataclass(frozen=True)
class AlignmentContext:
    """The alignment term that a generative model computes.

    Args:
        feature_dim: F, channels of the frozen encoder's patch features.
        layer: counted from 1; the hidden tokens after that layer are aligned.
        projector_dim: width of the projector's two hidden layers.
    """

    feature_dim: int
    layer: int
    projector_dim: int = 2048


@dataclass(frozen=True)
class ModelContext:
    """Latents, classes and alignment that a generative model is built for.

    Args:
        latent_shape: (C, h, w) of the latents.
        num_classes: number of classes, or None for an unlabelled data set.
        alignment: None when no alignment is configured.
        is_restored: whether a checkpoint brings the weights, so that a model need not look for pretrained ones.
        guidance: weight w >= 0 that the run draws its samples with, for `Options.check`.
    """

    latent_shape: tuple[int, int, int]
    num_classes: int | None = None
    alignment: AlignmentContext | None = None
    is_restored: bool = False
    guidance: float = 0.0


@dataclass(frozen=True)
class PosteriorContext:
    """Latents that a posterior head is built for: `latent_channels` is C."""

    latent_channels: int


@dataclass(frozen=True)
class DataContext:
    """The images of a run: `image_size` in pixels, `split` 'train' or 'test', and the run's `seed`.

    `allows_pipes` is the consent of who started the command to run commands that the configuration names; it is never
    part of a configuration.
    """

    image_size: int
    split: str
    seed: int = 0
    allows_pipes: bool = False

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise DataError(f"unknown split `{self.split}`. Known: {', '.join(SPLITS)}.")


class ModelFacts:
    """Facts of a generative model that configurations are checked against before it is imported or built."""

    Options: ClassVar[type[Options]]

    coupled_terms: ClassVar[frozenset[str]] = frozenset()
    """Names of the terms whose gradient may reach a trainable autoencoder through `latents`. The other terms see
    the latents detached; the harness does the routing, the model never detaches."""

    supports_alignment: ClassVar[bool] = False
    """True if `training_losses`, given features, returns an `alignment` term of hidden tokens."""

    supports_autoguidance: ClassVar[bool] = False
    """True if the model is a `simflow_plugin.contracts.GuidedByWeaker`."""


class DatasetFacts:
    """Facts of a data set that configurations are planned with before it is imported or read."""

    Options: ClassVar[type[Options]]

    known_num_classes: ClassVar[int | None] = None
    """Classes of this data set wherever it is; None where they are up to the user's files."""


class AutoencoderFacts:
    """Facts of an autoencoder that configurations are checked against before it is imported or built."""

    Options: ClassVar[type[Options]]

    @classmethod
    def geometry(cls, options: Any) -> tuple[int, int] | None:
        """Return (factor, latent_channels) as far as the options alone tell, for checks before anything is built.

        Raises:
            ConfigError: if the options clash.
        """
        return None

    @classmethod
    def trained_part(cls, options: Any) -> str:
        """Return `trainable` as the options set it; `full` unless overridden."""
        return "full"

    @classmethod
    def learns_variance(cls, options: Any) -> bool:
        """Return whether the posterior's variance is trained, so that `objective.kl_weight` has an effect."""
        return True

    @classmethod
    def shape_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Return options of the same shapes that need no file, for `simflow plan`.

        Raises:
            ConfigError: if the shapes are known to a file only.
        """
        return options


class PosteriorFacts:
    """Facts of a posterior head that are known before it is imported."""

    Options: ClassVar[type[Options]]

    learns_variance: ClassVar[bool]
    """True if the variance is trained, so that the objective adds an entropy or KL term; as in `Posterior`."""
