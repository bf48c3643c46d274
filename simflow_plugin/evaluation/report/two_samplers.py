"""Two samplers of one run side by side: a learned inverse and the exact one, cached and Jacobi, Euler and Heun.

Same weights, guidance, noise and number of samples, so that a ratio is of the samplers alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simflow_plugin.errors import EvaluationError
from simflow_plugin.evaluation.fidelity import distance
from simflow_plugin.evaluation.flops import measure_run
from simflow_plugin.evaluation.report.metric_names import format_value, in_order, metric_name
from simflow_plugin.evaluation.result import Evaluation

if TYPE_CHECKING:
    from simflow_plugin.evaluation.evaluator import RunEvaluator


def sampler_lines(
    first: tuple[RunEvaluator, Evaluation], second: tuple[RunEvaluator, Evaluation]
) -> list[str]:
    """Return a Markdown table of what was measured of both samplers, with the ratio of the first to the second.

    Args:
        first: an evaluator that has measured, and its result.
        second: of the same run with another sampler.
    """
    facts = [evaluator.loaded.require_model().sampler_facts() for evaluator, _ in (first, second)]
    lines = [f"| | {facts[0].name} | {facts[1].name} | ratio |", "|---|---|---|---|"]
    found = [evaluation.metrics for _, evaluation in (first, second)]
    of_samples = first[0].evaluation.metrics  # what was measured now
    for key in in_order({key: None for key in of_samples if key in found[1]}):
        numbers = [metrics[key] for metrics in found]
        shown = " | ".join(format_value(key, number) for number in numbers)
        lines.append(
            f"| {metric_name(key).heading} | {shown} | {_ratio(numbers[0].value, numbers[1].value)} |"
        )
    passes = [fact.passes for fact in facts]
    lines.append(_row("sequential passes of a batch", *passes))
    lines.append(_row("FLOPs a sample", *(_flops(evaluator) for evaluator, _ in (first, second))))
    features = [evaluator.sample_features for evaluator, _ in (first, second)]
    if features[0] is not None and features[1] is not None:
        between = distance(features[0], features[1]).value
        lines += ["", f"Fréchet distance between the two sets of samples: {between:.4g}"]
    return lines


def _row(name: str, *values: int | None) -> str:
    shown = " | ".join("by convergence" if value is None else f"{value:,}" for value in values)
    ratio = "—" if None in values else _ratio(float(values[0] or 0), float(values[1] or 0))
    return f"| {name} | {shown} | {ratio} |"


def _ratio(first: float, second: float) -> str:
    return f"{first / second:.3g}" if second else "—"


def _flops(evaluator: RunEvaluator) -> int | None:
    """Return the FLOPs of a sample, or None for a sampler whose work depends on values."""
    sampler = evaluator.sampler
    assert sampler is not None
    try:
        return measure_run(evaluator.loaded, sampler.guidance, sampler.model).sampling_flops
    except EvaluationError:
        return None
