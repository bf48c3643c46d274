"""The parts of a configuration on the meta device: shapes only, without data or weights.

What is pretrained is built from the options that are written down, so a plan needs no file that the run will need.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from simflow_plugin import registry
from simflow_plugin.config.schema import Objective, RunConfig
from simflow_plugin.contracts import (
    Autoencoder,
    DataContext,
    ModelContext,
    NetworkOutline,
    Outlines,
)
from simflow_plugin.errors import SimflowError
from simflow_plugin.losses.adversarial import AdversarialLoss
from simflow_plugin.losses.pixel import L2Loss
from simflow_plugin.losses.reconstruction import ReconstructionLoss
from simflow_plugin.objective import JointObjective
from simflow_plugin.registry import Part
from simflow_plugin.runs.parts import alignment_context, build_dataset, build_model, objective_weights

ASSUMED_CLASSES = 1000
ASSUMED_FEATURES = (256, 768)
"""(N, F): those of DINOv2-B on 256 pixels, where an encoder cannot be built without its weights."""


@dataclass(frozen=True)
class Outline:
    """A run without data.

    Args:
        joint: the objective on the meta device, with a pixel loss for all reconstruction losses.
        encoder: network of the frozen alignment encoder; None if there is none, or it is known to its weights only.
        feature_shape: (N, F) of its features, or None.
        perceptual: networks of the reconstruction losses.
        discriminator: of the adversarial loss, or None.
        assumptions: what could not be known from the configuration alone.
    """

    config: RunConfig
    joint: JointObjective
    encoder: NetworkOutline | None
    feature_shape: tuple[int, int] | None
    perceptual: list[NetworkOutline]
    discriminator: nn.Module | None
    num_classes: int | None
    assumptions: tuple[str, ...]


def make_outline(config: RunConfig) -> Outline:
    """Build every network of `config` on the meta device.

    Raises:
        ConfigError: if the autoencoder's shape is known to its pretrained weights only.
    """
    assumptions: list[str] = []
    context = DataContext(config.image_size, "train", config.seed)
    num_classes = _num_classes(config, assumptions)
    autoencoder = _autoencoder(config.autoencoder, context)
    encoder, feature_shape = None, None
    if config.alignment is not None:
        encoder = _encoder(config.alignment.encoder, context, assumptions)
        feature_shape = ASSUMED_FEATURES if encoder is None else encoder.feature_shape
    feature_dim = feature_shape[1] if feature_shape is not None else None
    with init_empty_weights():
        shape = autoencoder.latent_shape(config.image_size)
        model_context = ModelContext(shape, num_classes, alignment_context(config.alignment, feature_dim))
        model = build_model(config.model, model_context, config.sampling)
    if model is not None:
        model.to("meta")
    losses = ReconstructionLoss([("l2", 1.0, L2Loss(L2Loss.Options()))])
    trains_model = config.frozen_model is None
    return Outline(
        config,
        JointObjective(autoencoder, model, losses, objective_weights(config), trains_model),
        encoder,
        feature_shape,
        _perceptual(config.objective, context, assumptions),
        _discriminator(config.objective),
        num_classes,
        tuple(assumptions),
    )


def _num_classes(config: RunConfig, assumptions: list[str]) -> int | None:
    facts = registry.DATASETS.facts(config.data.name)
    known: int | None = getattr(facts, "known_num_classes", None)  # a data set of another package may not say
    if known is not None:
        return known
    try:
        return build_dataset(config, "train").num_classes
    except SimflowError:
        assumptions.append(f"the data set is not on this machine: {ASSUMED_CLASSES} classes are assumed")
        return ASSUMED_CLASSES


def _autoencoder(part: Part, context: DataContext) -> Autoencoder:
    factory = registry.AUTOENCODERS.get(part.name)
    options = factory.Options.model_validate(factory.shape_options(part.options))
    with init_empty_weights():  # parameters only: options become tensors whose values are checked
        autoencoder = registry.AUTOENCODERS.build(part.name, options, context)
    return autoencoder.to("meta")


def _encoder(part: Part, context: DataContext, assumptions: list[str]) -> NetworkOutline | None:
    """Return the alignment encoder's network; None where it is known to its weights only."""
    outline = _outline(part, registry.ENCODERS, context)
    if outline is None:
        assumptions.append(
            f"encoder `{part.name}` is known to its weights only: features {ASSUMED_FEATURES} are assumed, and its "
            "own work is not counted"
        )
    return outline


def _outline(part: Part, parts: registry.Registry, context: DataContext) -> NetworkOutline | None:
    factory = parts.get(part.name)
    if not isinstance(factory, Outlines):
        return None
    with init_empty_weights():
        outline = factory.outline(part.options_of(factory), context)
    if outline is not None:
        outline.network.to("meta")
    return outline


def _discriminator(objective: Objective) -> nn.Module | None:
    if objective.adversarial is None:
        return None
    with init_empty_weights():
        loss = AdversarialLoss(objective.adversarial)
    return loss.discriminator.to("meta")


def _perceptual(objective: Objective, context: DataContext, assumptions: list[str]) -> list[NetworkOutline]:
    """Return the networks of the reconstruction losses; a loss of plain arithmetic has none."""
    found, unknown = [], []
    for name, loss in objective.reconstruction.items():
        part = Part.model_validate({"name": name, **loss.options})
        outline = _outline(part, registry.RECONSTRUCTION_LOSSES, context)
        if outline is not None:
            found.append(outline)
        elif not isinstance(registry.RECONSTRUCTION_LOSSES.get(name), Outlines):
            unknown.append(name)
    if unknown:
        assumptions.append(f"the work of the losses {', '.join(sorted(unknown))} is not counted")
    return found


def zeros(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a tensor without data."""
    return torch.zeros(shape, dtype=dtype, device="meta")
