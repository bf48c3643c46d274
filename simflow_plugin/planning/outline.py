"""The parts of a configuration on the meta device: shapes only, without data or weights.

What is pretrained is built from the options that are written down, so a plan needs no file that the run will need.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from simflow_plugin import registry
from simflow_plugin.config.schema import RunConfig
from simflow_plugin.contracts import Autoencoder, DataContext, GenerativeModel
from simflow_plugin.errors import ConfigError, SimflowError
from simflow_plugin.runs.parts import build_dataset, build_model

FROM_FILES = ("pretrained", "pretrained_format", "subfolder", "scale", "shift")
"""Options of an autoencoder that need a file, or values to check; none of them changes a shape."""
ASSUMED_CLASSES = 1000
ASSUMED_FEATURES = (256, 768)
"""(N, F): those of DINOv2-B on 256 pixels, where an encoder cannot be built without its weights."""


@dataclass(frozen=True)
class Outline:
    """A run without data.

    Args:
        autoencoder, model: on the meta device; the model is None where an autoencoder is trained alone.
        encoder: network of the frozen alignment encoder, and the pixels that it sees; None if there is none.
        feature_shape: (N, F) of its features, or None.
        perceptual: backbone of the perceptual loss, or None.
        discriminator: of the adversarial loss, or None.
        num_classes: of the data set.
        assumptions: what could not be known from the configuration alone.
    """

    autoencoder: Autoencoder
    model: GenerativeModel | None
    encoder: tuple[nn.Module, int] | None
    feature_shape: tuple[int, int] | None
    perceptual: nn.Module | None
    discriminator: nn.Module | None
    num_classes: int | None
    assumptions: tuple[str, ...]


def make_outline(config: RunConfig) -> Outline:
    """Build every network of `config` on the meta device.

    Raises:
        ConfigError: if the autoencoder's shape is known to its pretrained weights only.
    """
    assumptions: list[str] = []
    num_classes = _num_classes(config, assumptions)
    autoencoder = _autoencoder(config)
    encoder, feature_shape = _encoder(config, assumptions)
    feature_dim = feature_shape[1] if feature_shape is not None else None
    latent_shape = autoencoder.latent_shape(config.image_size)
    with init_empty_weights():
        model = build_model(config, latent_shape, num_classes, feature_dim)
        discriminator = _discriminator(config)
        perceptual = _perceptual(config, assumptions)
    for module in (model, discriminator, perceptual):
        if module is not None:
            module.to("meta")
    return Outline(
        autoencoder, model, encoder, feature_shape, perceptual, discriminator, num_classes, tuple(assumptions)
    )


def _num_classes(config: RunConfig, assumptions: list[str]) -> int | None:
    try:
        return build_dataset(config, "train").num_classes
    except SimflowError:
        assumptions.append(f"the data set is not on this machine: {ASSUMED_CLASSES} classes are assumed")
        return ASSUMED_CLASSES


def _autoencoder(config: RunConfig) -> Autoencoder:
    factory: Any = registry.AUTOENCODERS.get(config.autoencoder.name)
    given = config.autoencoder.options
    written = {key: value for key, value in given.items() if key not in FROM_FILES}
    options = factory.Options.model_validate(written)
    if given.get("pretrained") is not None and (
        given.get("factor") is None or given.get("latent_channels") is None
    ):
        raise ConfigError(
            f"autoencoder: the shape of {given['pretrained']} is known to that file only. Write down `factor` and "
            "`latent_channels` (and `widths`, if they are not the usual ones) to plan without it."
        )
    with init_empty_weights():  # parameters only: options become tensors whose values are checked
        autoencoder = factory(options, DataContext(config.image_size, "train", config.seed))
    return autoencoder.to("meta")


def _encoder(
    config: RunConfig, assumptions: list[str]
) -> tuple[tuple[nn.Module, int] | None, tuple[int, int] | None]:
    """Return (network, its input size) and its feature shape."""
    if config.alignment is None:
        return None, None
    part = config.alignment.encoder
    from simflow_plugin.alignment import timm_encoders

    name = part.options.get("model") or timm_encoders.MODEL_BY_PRESET.get(part.name)
    if name is None:
        assumptions.append(
            f"encoder `{part.name}` is known to its weights only: features {ASSUMED_FEATURES} are assumed, and its "
            "own work is not counted"
        )
        return None, ASSUMED_FEATURES
    plan = timm_encoders.plan_encoder(
        name, config.image_size, part.options.get("input_size"), part.options.get("stage")
    )
    rows, columns = plan.layer.grid
    return (plan.network, plan.input_size), (rows * columns, plan.layer.num_channels)


def _discriminator(config: RunConfig) -> nn.Module | None:
    if config.objective.adversarial is None:
        return None
    from simflow_plugin.losses.adversarial import AdversarialLoss

    return AdversarialLoss(AdversarialLoss.Options.model_validate(config.objective.adversarial)).discriminator


def _perceptual(config: RunConfig, assumptions: list[str]) -> nn.Module | None:
    names = set(config.objective.reconstruction) - {"l1", "l2"}
    if "lpips" in names:
        import torchvision

        net = config.objective.reconstruction["lpips"].options.get("net", "vgg")
        builders: dict[str, Callable[..., Any]] = {
            "vgg": torchvision.models.vgg16,
            "alex": torchvision.models.alexnet,
        }
        names.remove("lpips")
        if names:
            assumptions.append(f"the work of the losses {', '.join(sorted(names))} is not counted")
        return builders[net](weights=None).features
    if names:
        assumptions.append(f"the work of the losses {', '.join(sorted(names))} is not counted")
    return None


def zeros(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a tensor without data."""
    return torch.zeros(shape, dtype=dtype, device="meta")
