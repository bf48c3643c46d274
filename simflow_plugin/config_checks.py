"""Whether the values of a configuration fit together: what is refused before anything is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simflow_plugin import registry
from simflow_plugin.contracts import AlignmentContext, ModelContext
from simflow_plugin.errors import ConfigError
from simflow_plugin.yaml_source import YamlSource

if TYPE_CHECKING:
    from simflow_plugin.config import RunConfig


def check_config(config: RunConfig, source: YamlSource | None = None) -> None:
    """Refuse values that clash, before anything is built.

    Raises:
        ConfigError: with the values that clash.
    """
    where = source or YamlSource({}, {}, config.name)
    training, size = config.training, config.image_size
    if training.batch_size % training.accumulation:
        raise ConfigError(
            f"{where.place(('training', 'batch_size'))}: training.batch_size {training.batch_size} is not divisible "
            f"by training.accumulation {training.accumulation}."
        )
    factory = registry.AUTOENCODERS.get(config.autoencoder.name)
    autoencoder = factory.Options.model_validate(config.autoencoder.options)
    try:
        geometry = factory.geometry(autoencoder)
    except ConfigError as error:
        raise ConfigError(f"{where.place(('autoencoder',))}: autoencoder: {error}") from error
    factor, channels = geometry if geometry is not None else (None, None)
    if factor and size % factor:
        below = max(factor, size - size % factor)
        raise ConfigError(
            f"{where.place(('image_size',))}: image_size {size} is not divisible by the autoencoder's factor {factor} "
            f"(autoencoder `{config.autoencoder.name}`). Use {below} or {below + factor}."
        )
    trainable = getattr(autoencoder, "trainable", "full")
    if trainable != "none" and not config.objective.reconstruction:
        raise ConfigError(
            f"{where.place(('objective', 'reconstruction'))}: objective.reconstruction is empty, but "
            f"autoencoder.trainable is {trainable}: the decoder would learn nothing. Name a loss, l2: 1.0, say."
        )
    if config.model is None:
        if trainable == "none":
            raise ConfigError(
                f"{where.place(('autoencoder',))}: autoencoder.trainable is none and model is null: nothing to train."
            )
        return
    _check_coupling(config, trainable, where)
    factory = registry.MODELS.get(config.model.name)
    check = getattr(factory, "check", None)
    if check is not None and factor and channels:
        alignment = None
        if config.alignment is not None:
            alignment = AlignmentContext(1, config.alignment.layer, config.alignment.projector_dim)
        context = ModelContext((channels, size // factor, size // factor), None, alignment)
        try:
            check(factory.Options.model_validate(config.model.options), context, config.sampling.guidance)
        except ConfigError as error:
            raise ConfigError(f"{where.place(('model',))}: {error}") from error


def _check_coupling(config: RunConfig, trainable: str, where: YamlSource) -> None:
    """A trained encoder must get a gradient from the model: reconstruction alone would ignore it."""
    assert config.model is not None
    factory = registry.MODELS.get(config.model.name)
    coupled = set(getattr(factory, "coupled_terms", frozenset()))
    alignment = config.alignment
    if alignment is not None and alignment.mode == "repa_e" and trainable != "full":
        raise ConfigError(
            f"{where.place(('alignment', 'mode'))}: alignment.mode repa_e sends its gradient into the encoder, but "
            f"autoencoder.trainable is {trainable}. Use alignment.mode: repa, or autoencoder.trainable: full."
        )
    if alignment is None or alignment.mode == "repa":
        coupled.discard("alignment")
    if trainable == "full" and not coupled:
        raise ConfigError(
            f"{where.place(('autoencoder',))}: autoencoder.trainable is full, but model `{config.model.name}` detaches "
            "the latents, so the encoder would never hear of it. Train the autoencoder first (model: null) and use "
            "trainable: none or decoder, or couple them by alignment.mode: repa_e."
        )
