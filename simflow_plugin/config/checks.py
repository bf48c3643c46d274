"""Checks of a configuration: values that clash, and what this machine lacks; a part's own values it checks itself."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

from simflow_plugin import registry
from simflow_plugin.config.schema import Evaluation, Objective, RunConfig
from simflow_plugin.config.yaml_source import YamlSource
from simflow_plugin.contexts import (
    AlignmentContext,
    AutoencoderFacts,
    DataContext,
    ModelContext,
    ModelFacts,
)
from simflow_plugin.errors import ConfigError, SimflowError
from simflow_plugin.registry import Part

Problems = Iterator[str]
"""Messages, each of which begins with its key. Only the first is asked for: those after it may depend on it."""


def check_config(config: RunConfig, source: YamlSource | None = None) -> None:
    """Refuse values that clash, before anything is built; the same on every machine.

    Raises:
        ConfigError: with the values that clash.
    """
    where = source or YamlSource({}, {}, config.name)
    for problem in _problems(config):
        key = problem.split()[0].rstrip(":")
        raise ConfigError(f"{where.place(tuple(key.split('.')))}: {problem}")


def check_before_training(config: RunConfig, num_classes: int | None) -> None:
    """Refuse what would fail hours later, at the end of training: what this machine or the data set does not have.

    Args:
        config: resolved.
        num_classes: of the data set, or None.
    Raises:
        ConfigError: if the tracker's package or the judge's file is missing, or the samples cannot be judged.
    """
    for tracker in config.tracker:
        if find_spec(tracker.name) is None:
            raise ConfigError(
                f"tracker: {tracker.name} needs the package: pip install 'simflow-plugin[{tracker.name}]', or set "
                "tracker: none."
            )
    judge = config.evaluation.judge
    if config.model is None or config.evaluation.num_samples == 0 or judge is None:
        return
    factory = registry.JUDGES.get(judge.name)
    with registry.JUDGES.blaming(judge.name):
        factory.check_files(factory.Options.model_validate(judge.options), config.data.name)
    if num_classes is None:
        raise ConfigError(
            f"evaluation.judge: {judge.name} needs labels, and the data set `{config.data.name}` has none. "
            "Set evaluation.judge: none."
        )
    for problem in _too_few_samples(config.evaluation, judge, num_classes):
        raise ConfigError(f"{config.name}: {problem}")


def _problems(config: RunConfig) -> Problems:
    facts: type[AutoencoderFacts] = registry.AUTOENCODERS.facts(config.autoencoder.name)
    options = config.autoencoder.options_of(facts)
    with registry.AUTOENCODERS.blaming(config.autoencoder.name):
        trainable, learns_variance = facts.trained_part(options), facts.learns_variance(options)
    yield from _numbers(config, learns_variance)
    yield from _judge(config)
    yield from _autoguidance(config)
    yield from _trainable(config, trainable)
    yield from _frozen_model(config, trainable)
    yield from _alignment(config, trainable)
    latent_shape = yield from _latent_shape(config, facts, options)
    yield from _own_options(config, latent_shape)
    yield from _coupling(config, trainable)


def _numbers(config: RunConfig, learns_variance: bool) -> Problems:
    """Yield numbers that do not fit each other, or change nothing beside what else was chosen."""
    training, optimizer, objective = config.training, config.optimizer, config.objective
    if training.batch_size % training.accumulation:
        yield (
            f"training.batch_size {training.batch_size} is not divisible by training.accumulation "
            f"{training.accumulation}."
        )
    if optimizer.warmup_steps > training.steps:
        yield (
            f"optimizer.warmup_steps {optimizer.warmup_steps} is more than training.steps {training.steps}: the "
            "learning rate would never be reached. Set optimizer.warmup_steps too."
        )
    if optimizer.schedule == "constant" and optimizer.final_lr_ratio:
        yield (
            f"optimizer.final_lr_ratio {optimizer.final_lr_ratio:g} has no effect with optimizer.schedule: "
            "constant. Remove it, or set optimizer.schedule: cosine."
        )
    if not learns_variance and objective.kl_weight not in (0, Objective.model_fields["kl_weight"].default):
        yield (
            f"objective.kl_weight {objective.kl_weight:g} has no effect with a posterior of constant variance, "
            f"as autoencoder `{config.autoencoder.name}` has it here (autoencoder.posterior). Remove it."
        )


def _judge(config: RunConfig) -> Problems:
    judge = config.evaluation.judge
    if judge is None:
        return
    facts = registry.JUDGES.facts(judge.name)
    if facts.data not in (None, config.data.name):
        yield (
            f"evaluation.judge: {judge.name} judges the data set `{facts.data}` only, not `{config.data.name}`. Set "
            "evaluation.judge: none, or name another judge."
        )
    if config.model is not None and config.evaluation.num_samples > 0 and facts.num_classes is not None:
        yield from _too_few_samples(config.evaluation, judge, facts.num_classes)


def _too_few_samples(evaluation: Evaluation, judge: Part, num_classes: int) -> Problems:
    """Samples are of the classes in turn, and diversity is a distance between two samples of one class."""
    if evaluation.num_samples < 2 * num_classes:
        yield (
            f"evaluation.num_samples {evaluation.num_samples} is too few for evaluation.judge: {judge.name}, which "
            f"needs two samples of each of {num_classes} classes: {2 * num_classes}, or 0 to draw none."
        )


def _autoguidance(config: RunConfig) -> Problems:
    model, sampling = config.model, config.sampling
    if sampling.autoguidance is None:
        return
    named = f"sampling.autoguidance {sampling.autoguidance}"
    if model is None or sampling.guidance == 0:
        found = "model: null" if model is None else "sampling.guidance: 0"
        yield f"{named} has no effect with {found}. Set a weight, or remove it."
    # A model of another package may state no such fact.
    elif not getattr(registry.MODELS.facts(model.name), "supports_autoguidance", False):
        yield f"{named}: model `{model.name}` cannot be guided by another model. Remove it."


def _trainable(config: RunConfig, trainable: str) -> Problems:
    """Require a trained decoder for options that train it, and losses for a decoder that is trained."""
    if config.training.cache_latents and trainable == "full":
        yield (
            "training.cache_latents keeps the encoder's output for every image, but autoencoder.trainable is full, and "
            "that output changes with every step. Set training.cache_latents: false, or autoencoder.trainable: "
            "none or decoder."
        )
    if trainable != "none":
        if not config.objective.reconstruction:
            yield (
                f"objective.reconstruction is empty, but autoencoder.trainable is {trainable}: the decoder would "
                "learn nothing. Name a loss, l2: 1.0, say."
            )
        return
    if config.model is None:
        yield "autoencoder.trainable is none and model is null: nothing to train."
    if config.objective.adversarial is not None:
        yield (
            "objective.adversarial has no effect with autoencoder.trainable: none, which decodes nothing in "
            "training. Set objective.adversarial: null, or autoencoder.trainable: decoder or full."
        )
    if config.optimizer.autoencoder_lr is not None:
        yield (
            f"optimizer.autoencoder_lr {config.optimizer.autoencoder_lr:g} has no effect with autoencoder.trainable: "
            "none. Set optimizer.autoencoder_lr: null, or autoencoder.trainable: decoder or full."
        )


def _frozen_model(config: RunConfig, trainable: str) -> Problems:
    """With a frozen model the decoder is left to train; an encoder that moved would leave its latents behind."""
    if config.frozen_model is None:
        return
    if config.model is None or config.alignment is not None or trainable != "decoder":
        found = f"model {config.model.name if config.model else 'null'}, autoencoder.trainable {trainable}"
        yield (
            f"frozen_model keeps the model as it is, and trains the decoder of its latents: it needs a model, "
            f"autoencoder.trainable: decoder and alignment: null; found {found}, alignment "
            f"{'null' if config.alignment is None else 'given'}. Set these, or frozen_model: null."
        )


def _alignment(config: RunConfig, trainable: str) -> Problems:
    alignment, model = config.alignment, config.model
    if alignment is None:
        return
    if model is None:
        yield (
            "alignment has no effect with model: null, whose hidden tokens it would align. Set alignment: null, or "
            "name a model."
        )
        return
    facts: type[ModelFacts] = registry.MODELS.facts(model.name)
    if not facts.supports_alignment:
        yield (
            f"alignment: model `{model.name}` gives no hidden tokens to align (supports_alignment). Set "
            "alignment: null, or choose a model with an alignment head."
        )
    if alignment.mode == "repa_e" and "alignment" not in facts.coupled_terms:
        yield (
            f"alignment.mode repa_e sends its gradient into the encoder, but model `{model.name}` detaches the "
            "latents. Use alignment.mode: repa."
        )
    if alignment.mode == "repa" and alignment.autoencoder_weight is not None:
        yield (
            f"alignment.autoencoder_weight {alignment.autoencoder_weight:g} has no effect with alignment.mode: repa, "
            "which stops at the latents. Set alignment.autoencoder_weight: null, or alignment.mode: repa_e."
        )
    if alignment.mode == "repa_e" and trainable != "full":
        yield (
            "alignment.mode repa_e sends its gradient into the encoder, but autoencoder.trainable is "
            f"{trainable}. Use alignment.mode: repa, or autoencoder.trainable: full."
        )


def _latent_shape(
    config: RunConfig, facts: type[AutoencoderFacts], options: Any
) -> Generator[str, None, tuple[int, int, int] | None]:
    """Return the latents' shape, None where it is known to pretrained weights only."""
    try:
        with registry.AUTOENCODERS.blaming(config.autoencoder.name):
            geometry = facts.geometry(options)
    except ConfigError as error:
        yield f"autoencoder: {error}"
        raise
    if geometry is None:
        return None
    factor, channels = geometry
    if config.image_size % factor:
        below = max(factor, config.image_size - config.image_size % factor)
        yield (
            f"image_size {config.image_size} is not divisible by the autoencoder's factor {factor} "
            f"(autoencoder `{config.autoencoder.name}`). Use {below} or {below + factor}."
        )
    return channels, config.image_size // factor, config.image_size // factor


def _own_options(config: RunConfig, latent_shape: tuple[int, int, int] | None) -> Problems:
    """Let every part check its own options against what it will be built with."""
    context = DataContext(config.image_size, "train", config.seed)
    checks: dict[str, Callable[[], None]] = {
        "data": partial(config.data.check_options, registry.DATASETS, context),
        "autoencoder": partial(config.autoencoder.check_options, registry.AUTOENCODERS, context),
    }
    for name, loss in config.objective.reconstruction.items():
        part = Part.model_validate({"name": name, **loss.options})
        checks[f"objective.reconstruction.{name}"] = partial(
            part.check_options, registry.RECONSTRUCTION_LOSSES, context
        )
    if config.objective.adversarial is not None:
        checks["objective.adversarial"] = partial(config.objective.adversarial.check, context)
    alignment = None
    if config.alignment is not None:
        encoder = config.alignment.encoder
        checks["alignment.encoder"] = partial(encoder.check_options, registry.ENCODERS, context)
        alignment = AlignmentContext(1, config.alignment.layer, config.alignment.projector_dim)
    if config.model is not None and latent_shape is not None:
        # With autoguidance no unconditional half is needed.
        weight = config.sampling.guidance if config.sampling.autoguidance is None else 0.0
        of_model = ModelContext(latent_shape, None, alignment, guidance=weight)
        checks["model"] = partial(config.model.check_options, registry.MODELS, of_model)
    for key, check in checks.items():
        try:
            check()
        except SimflowError as error:
            yield f"{key}: {error}"


def _coupling(config: RunConfig, trainable: str) -> Problems:
    """A trained encoder must get a gradient from the model: reconstruction alone would ignore it."""
    if config.model is None:
        return
    facts: type[ModelFacts] = registry.MODELS.facts(config.model.name)
    coupled = set(facts.coupled_terms)
    if config.alignment is None or config.alignment.mode == "repa":
        coupled.discard("alignment")
    way_out = ", or couple them by alignment.mode: repa_e" if "alignment" in facts.coupled_terms else ""
    if trainable == "full" and not coupled:
        yield (
            f"autoencoder.trainable is full, but model `{config.model.name}` detaches the latents, so the encoder "
            "would get no gradient from it. Train the autoencoder first (model: null, then `simflow export`) and use "
            f"trainable: none or decoder{way_out}."
        )
