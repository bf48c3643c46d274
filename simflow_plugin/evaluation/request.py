"""What an evaluation is asked for, and the refusal of what cannot be measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from simflow_plugin.contracts import GenerativeModel
from simflow_plugin.errors import EvaluationError
from simflow_plugin.options import did_you_mean
from simflow_plugin.runs.loaded_run import LoadedRun
from simflow_plugin.runs.parts import build_model

PARTS = ("generation", "reconstruction", "likelihood")


@dataclass(frozen=True)
class EvaluationRequest:
    """What to measure.

    Args:
        parts: of `PARTS`; None is all that the run can give.
        num_samples: to draw.
        guidance: weight w; None is the run's own.
        seed: of the noise.
        sampling: `key=value` assignments to the model's sampling options.
        reference: split that samples are compared with.
        extractor: name of a feature extractor, or None for no feature metrics.
        weights: its file.
        num_held_out: images for reconstruction and likelihood; None is the whole test split.
        likelihood: of images given decoded ones.
        posterior_samples: per image in the likelihood; 1 leaves its Monte-Carlo error unknown.
        lpips_backbone: AlexNet's file; None looks into torch's hub cache.
        ood: a data set by name, or a YAML mapping, to tell apart by likelihood.
        batch_size: None is the run's own.
    """

    parts: tuple[str, ...] | None = None
    num_samples: int = 10_000
    guidance: float | None = None
    seed: int = 0
    sampling: tuple[str, ...] = ()
    reference: Literal["test", "train"] = "test"
    extractor: str | None = "inception"
    weights: Path | None = None
    num_held_out: int | None = None
    likelihood: Literal["gaussian", "laplace"] = "gaussian"
    posterior_samples: int = 2
    lpips_backbone: str | None = None
    ood: str | None = None
    batch_size: int | None = None


def checked_parts(loaded: LoadedRun, request: EvaluationRequest) -> tuple[str, ...]:
    """Return the parts to measure; refuse what cannot be.

    Raises:
        EvaluationError: naming the option and what to do.
    """
    parts = request.parts
    if parts is None:
        parts = PARTS if loaded.model is not None else ("reconstruction",)
    for part in parts:
        if part not in PARTS:
            raise EvaluationError(f"--only: unknown part `{part}`.{did_you_mean(part, PARTS)}")
    _check_effects(request, parts)
    if "generation" in parts:
        _check_generation(loaded, request)
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
        "reference": "generation",
        "lpips_backbone": "reconstruction",
        "likelihood": "likelihood",
        "posterior_samples": "likelihood",
    }
    for name, part in needed.items():
        value, default = getattr(request, name), getattr(EvaluationRequest, name)
        if value != default and part not in parts:
            option = f"--{name.replace('_', '-')} {value}"
            raise EvaluationError(f"{option}: has no effect without the part `{part}`. Remove it.")
    if request.weights is not None and request.extractor is None:
        raise EvaluationError(
            f"--weights {request.weights}: has no effect with --extractor none. Remove one of them."
        )


def _check_generation(loaded: LoadedRun, request: EvaluationRequest) -> None:
    model = loaded.require_model()
    guidance = loaded.config.sampling.guidance if request.guidance is None else request.guidance
    if guidance > 0 and not (model.supports_guidance and loaded.num_classes is not None):
        raise EvaluationError(
            f"--guidance {guidance:g}: the run's model has no unconditional half to guide with. Use --guidance 0."
        )
    if request.num_samples < 2:
        raise EvaluationError(f"--num-samples {request.num_samples}: two are the least that can be compared.")


def with_sampling(loaded: LoadedRun, assignments: Sequence[str]) -> LoadedRun:
    """Return the run with other sampling options and the same weights.

    Args:
        loaded: the run.
        assignments: `key=value`, of the model's `sampling` options.
    Raises:
        EvaluationError: for an option that the model does not have.
    """
    if not assignments:
        return loaded
    model, part = loaded.require_model(), loaded.config.model
    assert part is not None
    sampling = {**part.options.get("sampling", {}), **dict(map(assignment, assignments))}
    options = {**part.options, "sampling": sampling}
    try:
        type(model).Options.model_validate(options)
    except ValidationError as error:
        known = part.options.get("sampling", {})
        detail = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise EvaluationError(
            f"--sampling {' '.join(assignments)}: {detail}. Known: {', '.join(known)}."
        ) from error
    config = loaded.config.model_copy(update={"model": part.model_copy(update={"options": options})})
    state = loaded.checkpoint.state
    shape = loaded.autoencoder.latent_shape(config.image_size)
    rebuilt = build_model(config, shape, state["num_classes"], state["feature_dim"])
    assert rebuilt is not None
    rebuilt.load_state_dict(model.state_dict())
    rebuilt.to(loaded.device).eval().requires_grad_(False)
    return replace(loaded, model=rebuilt, config=config)


def assignment(text: str) -> tuple[str, Any]:
    """Split `key=value`; the value is YAML."""
    key, separator, value = text.partition("=")
    if not separator:
        raise EvaluationError(f"--sampling {text}: expected key=value, `method=jacobi` for example.")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise EvaluationError(f"--sampling {text}: the value is not YAML.") from error
