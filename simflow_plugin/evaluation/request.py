"""Requests for an evaluation, and the refusal of those that cannot be met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from simflow_plugin import registry
from simflow_plugin.config.loading import resolve_part
from simflow_plugin.config.schema import Evaluation
from simflow_plugin.config.validation import validate
from simflow_plugin.config.yaml_source import YamlSource
from simflow_plugin.contracts import DataContext, GenerativeModel
from simflow_plugin.errors import EvaluationError
from simflow_plugin.evaluation.drawing import SEED
from simflow_plugin.evaluation.held_out import HeldOut
from simflow_plugin.options import did_you_mean
from simflow_plugin.registry import Part
from simflow_plugin.runs.loaded_run import LoadedRun

PARTS = ("generation", "reconstruction", "likelihood")
ALL_PARTS = (*PARTS, "classification")
"""Classification takes a pass a class, and is measured only if it is asked for."""


@dataclass(frozen=True)
class EvaluationRequest:
    """The numbers to measure, and on how much.

    Args:
        parts: of `ALL_PARTS`; None is all of `PARTS` that the run can give.
        num_samples: to draw.
        guidance: weight w; None is the run's own.
        seed: of the samples' noise; that of held-out images is always the same.
        sampling: `key=value` assignments to the model's sampling options.
        reference: split that samples are compared with.
        extractor: name of a feature extractor, or None for no feature metrics.
        weights: its file.
        num_held_out: images for reconstruction and likelihood; None is the whole test split.
        likelihood: of images given decoded ones.
        posterior_samples: per image in the likelihood; 1 leaves its Monte-Carlo error unknown.
        lpips_backbone: AlexNet's file; None looks into torch's hub cache.
        classify: also measure the part `classification`: the class of the largest likelihood.
        ood: a data set by name, or a YAML mapping, for out-of-distribution detection by likelihood.
        batch_size: None is the run's own.
        judge: of the samples; None is the run's own.
        autoguidance: `RUN[@step]` to guide by, or `none` for the unconditional half; None is the run's own.
    """

    parts: tuple[str, ...] | None = None
    num_samples: int = 10_000
    guidance: float | None = None
    seed: int = SEED
    sampling: tuple[str, ...] = ()
    reference: Literal["test", "train"] = "test"
    extractor: str | None = "inception"
    weights: Path | None = None
    num_held_out: int | None = None
    likelihood: Literal["gaussian", "laplace"] = "gaussian"
    posterior_samples: int = 2
    lpips_backbone: str | None = None
    classify: bool = False
    ood: str | None = None
    batch_size: int | None = None
    judge: Part | None = None
    autoguidance: str | None = None

    @classmethod
    def after_training(cls, evaluation: Evaluation, has_model: bool) -> EvaluationRequest:
        """Return what the section `evaluation` of a configuration asks for when training ends."""
        is_wanted = {
            "generation": has_model and evaluation.num_samples > 0,
            "reconstruction": evaluation.num_likelihood > 0,
            "likelihood": has_model and evaluation.num_likelihood > 0,
        }
        parts = tuple(part for part in PARTS if is_wanted[part])
        num_held_out = evaluation.num_likelihood or None
        return cls(parts, evaluation.num_samples, extractor=None, num_held_out=num_held_out)


def checked_parts(loaded: LoadedRun, request: EvaluationRequest) -> tuple[str, ...]:
    """Return the parts to measure; refuse what cannot be.

    Raises:
        EvaluationError: naming the option and what to do.
    """
    parts = request.parts
    if parts is None:
        parts = PARTS if loaded.model is not None else ("reconstruction",)
    if request.classify and "classification" not in parts:
        parts = (*parts, "classification")
    for part in parts:
        if part not in ALL_PARTS:
            raise EvaluationError(f"--only: unknown part `{part}`.{did_you_mean(part, ALL_PARTS)}")
    _check_effects(request, parts)
    if "generation" in parts and request.extractor is not None and request.num_samples < 2:
        raise EvaluationError(f"--num-samples {request.num_samples}: two are the least that can be compared.")
    if request.ood is not None and not ("likelihood" in parts and has_density(loaded)):
        raise EvaluationError(
            f"--ood {request.ood}: tells data sets apart by likelihood, which needs a model with an exact density, as "
            "flows have, and the part `likelihood`."
        )
    return parts


def has_density(loaded: LoadedRun) -> bool:
    """Return whether the run's model has an exact density."""
    return loaded.model is not None and type(loaded.model).log_prob is not GenerativeModel.log_prob


def _check_effects(request: EvaluationRequest, parts: Sequence[str]) -> None:
    """Refuse options that a part would need which is not measured."""
    needed = {
        "reference": {"generation"},
        "lpips_backbone": {"reconstruction"},
        "likelihood": {"likelihood"},
        "posterior_samples": {"likelihood", "classification"},
        "autoguidance": {"generation"},
    }
    for name, users in needed.items():
        value, default = getattr(request, name), getattr(EvaluationRequest, name)
        if value != default and not users & set(parts):
            option = f"--{name.replace('_', '-')} {value}"
            part = "` or `".join(sorted(users))
            raise EvaluationError(f"{option}: has no effect without the part `{part}`. Remove it.")
    if request.weights is not None and request.extractor is None:
        raise EvaluationError(
            f"--weights {request.weights}: has no effect with --extractor none. Remove one of them."
        )


def with_sampling(loaded: LoadedRun, changes: Mapping[str, Any], option: str) -> LoadedRun:
    """Return the run with other sampling options and the same weights.

    Args:
        changes: of the model's `sampling` options.
        option: as the user wrote it, for the message.
    Raises:
        EvaluationError: for an option that the model does not have.
    """
    model, part = loaded.require_model(), loaded.config.model
    assert part is not None
    known = part.options.get("sampling", {})
    options = {**part.options, "sampling": {**known, **changes}}
    try:
        type(model).Options.model_validate(options)
    except ValidationError as error:
        detail = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise EvaluationError(f"{option}: {detail}. Known: {', '.join(known)}.") from error
    return loaded.with_model_options(options)


def other_data(request: EvaluationRequest, context: DataContext, batch_size: int) -> HeldOut | None:
    """Return the images of another data set for out-of-distribution detection, or None.

    Raises:
        ConfigError: if `request.ood` names no data set, or one with wrong options.
    """
    if request.ood is None:
        return None
    source = YamlSource({}, {}, "--ood")
    source.override(f"data={request.ood}", option="--ood")
    raw = validate(Part, source.values["data"], source, ("data",))
    part = resolve_part(raw, registry.DATASETS, source, ("data",))
    dataset = part.build(registry.DATASETS, context)
    count = min(request.num_held_out or len(dataset), len(dataset))
    return HeldOut(dataset, f"test split of {part.name}", count, batch_size)


def assignment(text: str) -> tuple[str, Any]:
    """Split `key=value`; the value is YAML."""
    key, separator, value = text.partition("=")
    if not separator:
        raise EvaluationError(f"--sampling {text}: expected key=value, `method=jacobi` for example.")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise EvaluationError(f"--sampling {text}: the value is not YAML.") from error
