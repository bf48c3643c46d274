"""Build the parts that a configuration names."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from simflow_plugin import registry
from simflow_plugin.config.schema import Alignment, FrozenModel, RunConfig, Sampling
from simflow_plugin.contracts import (
    AlignmentContext,
    Autoencoder,
    DataContext,
    GenerativeModel,
    ImageDataset,
    ModelContext,
)
from simflow_plugin.errors import ConfigError, WeightsError
from simflow_plugin.files import file_digest
from simflow_plugin.losses.reconstruction import ReconstructionLoss
from simflow_plugin.objective import JointObjective, ObjectiveWeights
from simflow_plugin.randomness import derive_seed
from simflow_plugin.registry import Part
from simflow_plugin.weights import load_strictly, read_tensors

if TYPE_CHECKING:
    from simflow_plugin.losses.adversarial import AdversarialLoss


@dataclass(frozen=True)
class Parts:
    """The modules of a run: `encoder` is the frozen one of the alignment, `adversary` has the discriminator."""

    joint: JointObjective
    encoder: nn.Module | None
    adversary: AdversarialLoss | None


def build_dataset(config: RunConfig, split: str, allows_pipes: bool = False) -> ImageDataset:
    """Build the data set of `config` for 'train' or 'test'.

    Only the command line allows commands that `data` names (`pipe:`).
    """
    context = DataContext(config.image_size, split, config.seed, allows_pipes)
    return config.data.build(registry.DATASETS, context)


def build_autoencoder(config: RunConfig) -> Autoencoder:
    """Build the autoencoder of `config`."""
    return config.autoencoder.build(
        registry.AUTOENCODERS, DataContext(config.image_size, "train", config.seed)
    )


def architecture_only(config: RunConfig, state: dict[str, Any]) -> RunConfig:
    """Return `config` with an autoencoder of the same architecture that fetches no pretrained weights.

    Args:
        state: of a checkpoint; its `autoencoder_options` are what the autoencoder turned out to be when it was built.
    """
    options = state.get("autoencoder_options")
    if options is None:
        return config
    return config.model_copy(
        update={"autoencoder": config.autoencoder.model_copy(update={"options": options})}
    )


def alignment_context(options: Alignment | None, feature_dim: int | None) -> AlignmentContext | None:
    """Return the alignment term of a model; None without the section, or without features."""
    if options is None or feature_dim is None:
        return None
    return AlignmentContext(feature_dim, options.layer, options.projector_dim)


def build_model(
    part: Part | None, context: ModelContext, sampling: Sampling | None = None
) -> GenerativeModel | None:
    """Build a generative model, or None for a run that trains an autoencoder alone.

    Raises:
        ConfigError: if the model cannot be sampled with the guidance weight of `sampling`.
    """
    if part is None:
        return None
    model = part.build(registry.MODELS, context)
    if sampling is not None and sampling.autoguidance is None:  # a guide stands for the unconditional half
        check_guidance(sampling.guidance, model, context.num_classes, "sampling.guidance")
    return model


def check_guidance(weight: float, model: GenerativeModel, num_classes: int | None, option: str) -> None:
    """Refuse a guidance weight that a model cannot be sampled with.

    Raises:
        ConfigError: naming `option`, for a weight above 0 without classes, or without an unconditional half, unless a
            guide stands for it.
    """
    if model.guide is not None:
        model.check_guidance(weight)
        return
    if weight > 0 and num_classes is None:
        raise ConfigError(f"{option} {weight:g}: the data set has no labels to guide by. Use {option} 0.")
    if weight > 0 and not model.supports_guidance:
        raise ConfigError(
            f"{option} {weight:g}: {type(model).__name__} has no unconditional half to guide with. Train it with label "
            f"dropout, or use {option} 0."
        )
    model.check_guidance(weight)


def build_parts(config: RunConfig, num_classes: int | None) -> Parts:
    """Build everything that trains, with initial weights that depend on `config.seed` only."""
    context = DataContext(config.image_size, "train", config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "initialisation"))
        encoder = config.alignment.encoder.build(registry.ENCODERS, context) if config.alignment else None
        autoencoder = build_autoencoder(config)
        if config.image_size % autoencoder.factor:
            raise ConfigError(
                f"image_size {config.image_size} is not divisible by the factor {autoencoder.factor} of autoencoder "
                f"`{config.autoencoder.name}`."
            )
        feature_dim: Any = encoder.feature_dim if encoder is not None else None
        alignment = alignment_context(config.alignment, feature_dim)
        model_context = ModelContext(autoencoder.latent_shape(config.image_size), num_classes, alignment)
        model = build_model(config.model, model_context, config.sampling)
        if model is not None:
            model.attach_decoder(autoencoder.decode, config.image_size)
        if model is not None and config.frozen_model is not None:
            freeze_model(model, config.frozen_model)
        joint = JointObjective(
            autoencoder,
            model,
            build_reconstruction(config),
            objective_weights(config),
            trains_model=config.frozen_model is None,
        )
        adversary = None
        if config.objective.adversarial is not None:
            from simflow_plugin.losses.adversarial import AdversarialLoss

            adversary = AdversarialLoss(config.objective.adversarial, context)
    return Parts(joint, encoder, adversary)


def freeze_model(model: GenerativeModel, options: FrozenModel) -> None:
    """Load the weights that the configuration names into `model`, and freeze it.

    Raises:
        WeightsError: if the file is missing, has changed since the configuration was made, or is of another model.
    """
    path = Path(options.weights)
    if not path.is_file():
        raise WeightsError(
            f"frozen_model.weights: {path}: no such file. Put it back, or say where it is: --set "
            "frozen_model.weights=FILE."
        )
    if file_digest(path) != options.sha256:
        raise WeightsError(
            f"frozen_model.weights: {path}: its SHA-256 is not {options.sha256[:12]}..., whose latents this run "
            "decodes. Put the weights of then back, or start a new run."
        )
    load_strictly(model, read_tensors(path), f"frozen_model.weights: {path}")
    model.requires_grad_(False)


def build_reconstruction(config: RunConfig) -> ReconstructionLoss:
    """Build the weighted reconstruction terms."""
    context = DataContext(config.image_size, "train", config.seed)
    terms = []
    for name, loss in config.objective.reconstruction.items():
        part = Part.model_validate({"name": name, **loss.options})
        terms.append((name, loss.weight, part.build(registry.RECONSTRUCTION_LOSSES, context)))
    return ReconstructionLoss(terms)


def objective_weights(config: RunConfig) -> ObjectiveWeights:
    """Gather the objective's weights from their sections."""
    weights = ObjectiveWeights(beta=config.objective.beta, kl=config.objective.kl_weight)
    alignment = config.alignment
    if alignment is None:
        return weights
    own = alignment.weight if alignment.autoencoder_weight is None else alignment.autoencoder_weight
    return replace(
        weights, alignment=alignment.weight, alignment_autoencoder=own if alignment.mode == "repa_e" else 0.0
    )
