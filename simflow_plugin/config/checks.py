"""Checks of a configuration: values that clash, and what this machine lacks; a part's own values it checks itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from simflow_plugin import registry
from simflow_plugin.config.schema import Alignment, Evaluation, Objective, Optimizer, RunConfig, Training
from simflow_plugin.config.yaml_source import KeyPath, YamlSource
from simflow_plugin.contexts import (
    AlignmentContext,
    AutoencoderFacts,
    DataContext,
    ModelContext,
    ModelFacts,
)
from simflow_plugin.errors import ConfigError, SimflowError
from simflow_plugin.registry import Part


def check_config(config: RunConfig, source: YamlSource | None = None) -> None:
    """Refuse values that clash, before anything is built; the same on every machine.

    Raises:
        ConfigError: with the values that clash.
    """
    where = source or YamlSource({}, {}, config.name)
    factory: type[AutoencoderFacts] = registry.AUTOENCODERS.facts(config.autoencoder.name)
    options = config.autoencoder.options_of(factory)
    with registry.AUTOENCODERS.blaming(config.autoencoder.name):
        trained, learns_variance = factory.trained_part(options), factory.learns_variance(options)
    _check_training(config.training, config.optimizer, where)
    _check_effects(config, learns_variance, where)
    _check_judge(config, where)
    _check_autoguidance(config, where)
    _check_trainable(config, trained, where)
    _check_frozen_model(config, trained, where)
    if config.alignment is not None:
        _check_alignment(config.alignment, config.model, trained, where)
    latent_shape = _check_geometry(config, factory, options, where)
    _check_own_options(config, latent_shape, where)
    if config.model is not None:
        _check_coupling(config.model, config.alignment, trained, where)


def check_before_training(config: RunConfig, num_classes: int | None) -> None:
    """Refuse what would fail hours later, at the end of training: what this machine or the data set does not have.

    Args:
        config: resolved.
        num_classes: of the data set, or None.
    Raises:
        ConfigError: if the tracker's package or the judge's file is missing, or the samples cannot be judged.
    """
    evaluation = config.evaluation
    for tracker in config.tracker:
        if find_spec(tracker.name) is None:
            raise ConfigError(
                f"tracker: {tracker.name} needs the package: pip install 'simflow-plugin[{tracker.name}]', or set "
                "tracker: none."
            )
    judge = evaluation.judge
    if config.model is None or evaluation.num_samples == 0 or judge is None:
        return
    factory = registry.JUDGES.get(judge.name)
    with registry.JUDGES.blaming(judge.name):
        factory.check_files(factory.Options.model_validate(judge.options), config.data.name)
    if num_classes is None:
        raise ConfigError(
            f"evaluation.judge: {judge.name} needs labels, and the data set `{config.data.name}` has none. "
            "Set evaluation.judge: none."
        )
    _check_num_samples(config.evaluation, num_classes, YamlSource({}, {}, config.name))


def _refused(where: YamlSource, path: KeyPath, message: str) -> ConfigError:
    return ConfigError(f"{where.place(path)}: {message}")


def _check_training(training: Training, optimizer: Optimizer, where: YamlSource) -> None:
    warmup = optimizer.warmup_steps
    if training.batch_size % training.accumulation:
        raise _refused(
            where,
            ("training", "batch_size"),
            f"training.batch_size {training.batch_size} is not divisible by training.accumulation "
            f"{training.accumulation}.",
        )
    if warmup > training.steps:
        raise _refused(
            where,
            ("optimizer", "warmup_steps"),
            f"optimizer.warmup_steps {warmup} is more than training.steps {training.steps}: the learning rate would "
            "never be reached. Set optimizer.warmup_steps too.",
        )


def _check_effects(config: RunConfig, learns_variance: bool, where: YamlSource) -> None:
    """Refuse numbers that change nothing beside what else was chosen."""
    if config.optimizer.schedule == "constant" and config.optimizer.final_lr_ratio:
        raise _refused(
            where,
            ("optimizer", "final_lr_ratio"),
            f"optimizer.final_lr_ratio {config.optimizer.final_lr_ratio:g} has no effect with optimizer.schedule: "
            "constant. Remove it, or set optimizer.schedule: cosine.",
        )
    default = type(config.objective).model_fields["kl_weight"].default
    if not learns_variance and config.objective.kl_weight not in (0, default):
        raise _refused(
            where,
            ("objective", "kl_weight"),
            f"objective.kl_weight {config.objective.kl_weight:g} has no effect with a posterior of constant variance, "
            f"as autoencoder `{config.autoencoder.name}` has it here (autoencoder.posterior). Remove it.",
        )


def _check_judge(config: RunConfig, where: YamlSource) -> None:
    judge = config.evaluation.judge
    if judge is None:
        return
    factory = registry.JUDGES.facts(judge.name)
    if factory.data not in (None, config.data.name):
        raise _refused(
            where,
            ("evaluation", "judge"),
            f"evaluation.judge: {judge.name} judges the data set `{factory.data}` only, not `{config.data.name}`. Set "
            "evaluation.judge: none, or name another judge.",
        )
    if config.model is not None and config.evaluation.num_samples > 0 and factory.num_classes is not None:
        _check_num_samples(config.evaluation, factory.num_classes, where)


def _check_num_samples(evaluation: Evaluation, num_classes: int, where: YamlSource) -> None:
    """Samples are of the classes in turn, and diversity is a distance between two samples of one class."""
    if evaluation.judge is not None and evaluation.num_samples < 2 * num_classes:
        raise _refused(
            where,
            ("evaluation", "num_samples"),
            f"evaluation.num_samples {evaluation.num_samples} is too few for evaluation.judge: "
            f"{evaluation.judge.name}, which needs two samples of each of {num_classes} classes: "
            f"{2 * num_classes}, or 0 to draw none.",
        )


def _check_autoguidance(config: RunConfig, where: YamlSource) -> None:
    sampling, model = config.sampling, config.model
    if sampling.autoguidance is None:
        return
    path, named = ("sampling", "autoguidance"), f"sampling.autoguidance {sampling.autoguidance}"
    if model is None or sampling.guidance == 0:
        found = "model: null" if model is None else "sampling.guidance: 0"
        raise _refused(where, path, f"{named} has no effect with {found}. Set a weight, or remove it.")
    # A model of another package may state no such fact.
    if not getattr(registry.MODELS.facts(model.name), "supports_autoguidance", False):
        raise _refused(
            where, path, f"{named}: model `{model.name}` cannot be guided by another model. Remove it."
        )


def _check_trainable(config: RunConfig, trainable: str, where: YamlSource) -> None:
    """Require a trained decoder for options that train it, and losses for a decoder that is trained."""
    if config.training.cache_latents and trainable == "full":
        raise _refused(
            where,
            ("training", "cache_latents"),
            "training.cache_latents keeps the encoder's output for every image, but autoencoder.trainable is full, and "
            "that output changes with every step. Set training.cache_latents: false, or autoencoder.trainable: "
            "none or decoder.",
        )
    if trainable != "none":
        if not config.objective.reconstruction:
            raise _refused(
                where,
                ("objective", "reconstruction"),
                f"objective.reconstruction is empty, but autoencoder.trainable is {trainable}: the decoder would "
                "learn nothing. Name a loss, l2: 1.0, say.",
            )
        return
    if config.model is None:
        raise _refused(
            where, ("autoencoder",), "autoencoder.trainable is none and model is null: nothing to train."
        )
    if config.objective.adversarial is not None:
        raise _refused(
            where,
            ("objective", "adversarial"),
            "objective.adversarial has no effect with autoencoder.trainable: none, which decodes nothing in "
            "training. Set objective.adversarial: null, or autoencoder.trainable: decoder or full.",
        )
    if config.optimizer.autoencoder_lr is not None:
        raise _refused(
            where,
            ("optimizer", "autoencoder_lr"),
            f"optimizer.autoencoder_lr {config.optimizer.autoencoder_lr:g} has no effect with autoencoder.trainable: "
            "none. Set optimizer.autoencoder_lr: null, or autoencoder.trainable: decoder or full.",
        )


def _check_frozen_model(config: RunConfig, trainable: str, where: YamlSource) -> None:
    """With a frozen model the decoder is left to train; an encoder that moved would leave its latents behind."""
    if config.frozen_model is None:
        return
    if config.model is None or config.alignment is not None or trainable != "decoder":
        found = f"model {config.model.name if config.model else 'null'}, autoencoder.trainable {trainable}"
        raise _refused(
            where,
            ("frozen_model",),
            f"frozen_model keeps the model as it is, and trains the decoder of its latents: it needs a model, "
            f"autoencoder.trainable: decoder and alignment: null; found {found}, alignment "
            f"{'null' if config.alignment is None else 'given'}. Set these, or frozen_model: null.",
        )


def _check_alignment(alignment: Alignment, model: Part | None, trainable: str, where: YamlSource) -> None:
    if model is None:
        raise _refused(
            where,
            ("alignment",),
            "alignment has no effect with model: null, whose hidden tokens it would align. Set alignment: null, or "
            "name a model.",
        )
    factory: type[ModelFacts] = registry.MODELS.facts(model.name)
    if not factory.supports_alignment:
        raise _refused(
            where,
            ("alignment",),
            f"alignment: model `{model.name}` gives no hidden tokens to align (supports_alignment). Set "
            "alignment: null, or choose a model with an alignment head.",
        )
    if alignment.mode == "repa_e" and "alignment" not in factory.coupled_terms:
        raise _refused(
            where,
            ("alignment", "mode"),
            f"alignment.mode repa_e sends its gradient into the encoder, but model `{model.name}` detaches the "
            "latents. Use alignment.mode: repa.",
        )
    if alignment.mode == "repa" and alignment.autoencoder_weight is not None:
        raise _refused(
            where,
            ("alignment", "autoencoder_weight"),
            f"alignment.autoencoder_weight {alignment.autoencoder_weight:g} has no effect with alignment.mode: repa, "
            "which stops at the latents. Set alignment.autoencoder_weight: null, or alignment.mode: repa_e.",
        )
    if alignment.mode == "repa_e" and trainable != "full":
        raise _refused(
            where,
            ("alignment", "mode"),
            "alignment.mode repa_e sends its gradient into the encoder, but autoencoder.trainable is "
            f"{trainable}. Use alignment.mode: repa, or autoencoder.trainable: full.",
        )


def _check_geometry(
    config: RunConfig, factory: type[AutoencoderFacts], options: Any, where: YamlSource
) -> tuple[int, int, int] | None:
    """Return the latents' shape, None where it is known to pretrained weights only."""
    try:
        with registry.AUTOENCODERS.blaming(config.autoencoder.name):
            geometry = factory.geometry(options)
    except ConfigError as error:
        raise _refused(where, ("autoencoder",), f"autoencoder: {error}") from error
    if geometry is None:
        return None
    factor, channels = geometry
    if config.image_size % factor:
        below = max(factor, config.image_size - config.image_size % factor)
        raise _refused(
            where,
            ("image_size",),
            f"image_size {config.image_size} is not divisible by the autoencoder's factor {factor} "
            f"(autoencoder `{config.autoencoder.name}`). Use {below} or {below + factor}.",
        )
    return channels, config.image_size // factor, config.image_size // factor


def _check_own_options(
    config: RunConfig, latent_shape: tuple[int, int, int] | None, where: YamlSource
) -> None:
    """Let every part check its own options against what it will be built with."""
    context = DataContext(config.image_size, "train", config.seed)
    _check_part(config.data, registry.DATASETS, context, where, ("data",))
    _check_part(config.autoencoder, registry.AUTOENCODERS, context, where, ("autoencoder",))
    _check_objective(config.objective, context, where)
    alignment = None
    if config.alignment is not None:
        _check_part(config.alignment.encoder, registry.ENCODERS, context, where, ("alignment", "encoder"))
        alignment = AlignmentContext(1, config.alignment.layer, config.alignment.projector_dim)
    if config.model is not None and latent_shape is not None:
        # With autoguidance no unconditional half is needed.
        weight = config.sampling.guidance if config.sampling.autoguidance is None else 0.0
        model_context = ModelContext(latent_shape, None, alignment, guidance=weight)
        _check_part(config.model, registry.MODELS, model_context, where, ("model",))


def _check_objective(objective: Objective, context: DataContext, where: YamlSource) -> None:
    for name, loss in objective.reconstruction.items():
        part = Part.model_validate({"name": name, **loss.options})
        place = ("objective", "reconstruction", name)
        _check_part(part, registry.RECONSTRUCTION_LOSSES, context, where, place)
    if objective.adversarial is not None:
        with _naming(("objective", "adversarial"), where):
            objective.adversarial.check(context)


def _check_part(part: Part, parts: registry.Registry, context: Any, where: YamlSource, path: KeyPath) -> None:
    with _naming(path, where):
        part.check_options(parts, context)


@contextmanager
def _naming(path: KeyPath, where: YamlSource) -> Iterator[None]:
    """Within the block, what a part refuses is refused under its key."""
    try:
        yield
    except SimflowError as error:
        raise _refused(where, path, f"{'.'.join(path)}: {error}") from error


def _check_coupling(model: Part, alignment: Alignment | None, trainable: str, where: YamlSource) -> None:
    """A trained encoder must get a gradient from the model: reconstruction alone would ignore it."""
    factory: type[ModelFacts] = registry.MODELS.facts(model.name)
    coupled = set(factory.coupled_terms)
    if alignment is None or alignment.mode == "repa":
        coupled.discard("alignment")
    way_out = ", or couple them by alignment.mode: repa_e" if "alignment" in factory.coupled_terms else ""
    if trainable == "full" and not coupled:
        raise _refused(
            where,
            ("autoencoder", "trainable"),
            f"autoencoder.trainable is full, but model `{model.name}` detaches the latents, so the encoder would get "
            "no gradient from it. Train the autoencoder first (model: null, then `simflow export`) and use "
            f"trainable: none or decoder{way_out}.",
        )
