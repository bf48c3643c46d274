"""A comparison of runs as one HTML page, one Markdown table and one JSON file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from simflow_plugin.evaluation.comparison import ComparedRun, seconds_at
from simflow_plugin.evaluation.drawing import class_labels
from simflow_plugin.evaluation.report.grids import image_grid, png_bytes, shortened_name
from simflow_plugin.evaluation.report.html import (
    Cell,
    Collapsible,
    Figure,
    Part,
    Section,
    Table,
    Text,
    write_report,
)
from simflow_plugin.evaluation.report.metric_names import in_order, metric_cell, metric_name
from simflow_plugin.evaluation.report.plots import Curve, plot_panels, plot_terms
from simflow_plugin.evaluation.report.published import is_imagenet, published_tables
from simflow_plugin.evaluation.result import Measured
from simflow_plugin.files import write_text_atomically
from simflow_plugin.units import duration, with_prefix

COSTS = (
    "parameters, generative model",
    "parameters, autoencoder",
    "training, FLOPs / image",
    "training, FLOPs in all",
    "training, time",
    "sampling, FLOPs / image",
    "sampler",
    "sampling, sequential passes of a batch",
)
SHARED_TERMS = ("nll", "denoising", "alignment", "l1", "l2", "lpips")


def write_comparison(
    runs: Sequence[ComparedRun], problems: Sequence[str], folder: Path, per_class: int
) -> Path:
    """Write comparison.html, comparison.md and comparison.json, and return the page's path.

    Args:
        runs: with costs and samples.
        problems: what differs between them, if the comparison was forced.
        per_class: noise indices shown for every class.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metrics, costs = metrics_table(runs, problems), costs_table(runs)
    loaded = [run.loaded for run in runs]
    on_imagenet = all(is_imagenet(run.config, run.num_classes, run.class_names) for run in loaded)
    published = published_tables() if on_imagenet else []
    warnings = [f"Forced although they differ: {problem}." for problem in problems]
    warned = [Text(warning, is_warning=True) for warning in warnings]
    notes = [Text(f"{run.name}: {note}.") for run in runs for note in run.notes]
    configurations = [Collapsible(run.name, run.loaded.config.to_yaml(shortens_paths=True)) for run in runs]
    sections = [
        Section("Quality", [*warned, Text(provenance(runs)), metrics, *notes]),
        Section("Cost", [costs]),
        Section("Curves", _curves(runs)),
        Section("Samples", _grids(runs, per_class)),
        Section("Published elsewhere", published),
        Section("Configurations", configurations),
    ]
    config, title = loaded[0].config, f"Comparison: {', '.join(run.name for run in runs)}"
    page = folder / "comparison.html"
    subtitle = (
        f"{config.data.name}, {config.image_size} x {config.image_size} pixels, held-out images, EMA weights"
    )
    write_report(page, title, sections, subtitle)
    tables = map(to_markdown, (metrics, costs, *published))
    text = "\n\n".join([f"# {title}", provenance(runs), *warnings, *tables])
    write_text_atomically(folder / "comparison.md", text + "\n")
    document = {"runs": {run.name: _to_json(run) for run in runs}, "problems": list(problems)}
    write_text_atomically(folder / "comparison.json", json.dumps(document, indent=1) + "\n")
    return page


def _to_json(run: ComparedRun) -> dict[str, Any]:
    return {
        "settings": run.setting,
        "metrics": {name: number.to_json() for name, number in run.metrics.items()},
        "cost": None if run.cost is None else asdict(run.cost),
        "notes": run.notes,
    }


def provenance(runs: Sequence[ComparedRun]) -> str:
    """Return weights, guidance and precision of each column."""
    each = []
    for run in runs:
        guidance = f", guidance {run.setting['guidance']:g}" if run.loaded.model is not None else ""
        step = f"step {run.loaded.checkpoint.step:,}"
        each.append(f"{run.name}: {step}{guidance}, computed in {run.setting['precision']}")
    return "Averaged (EMA) weights, held-out images. " + "; ".join(each) + "."


def metrics_table(runs: Sequence[ComparedRun], problems: Sequence[str]) -> Table:
    """Return one row a metric, one column a run, the best marked where all were measured alike and undoubted."""
    rows: list[Sequence[str | Cell]] = []
    for key in in_order({key for run in runs for key in run.metrics}):
        name = metric_name(key)
        numbers = [run.metrics.get(key) for run in runs]
        conditions = list(dict.fromkeys(number.on for number in numbers if number is not None))
        differs = len(conditions) > 1
        if differs:
            numbers = [None if n is None else n.with_notes(warning=f"on {n.on}") for n in numbers]
        best = None if differs or problems else _best(key, numbers)
        cells = [metric_cell(key, number, index == best) for index, number in enumerate(numbers)]
        remark = name.caveat or ("" if differs else conditions[0])
        rows.append((name.heading, *cells, Cell("", remark)))
    note = (
        "Small print: 95 % intervals by bootstrap, over blocks or over seeds; a Monte-Carlo error is one standard "
        "error of other posterior draws for the same images. Bold: best, beyond the intervals; what has none, as FID "
        "from one seed, has no bold number."
    )
    return Table(("metric", *(run.name for run in runs), "measured on"), rows, notes=(note,))


def costs_table(runs: Sequence[ComparedRun]) -> Table:
    """Return parameters, FLOPs and seconds of every run."""
    columns = [_costs(run) for run in runs]
    rows = [(title, *(column.get(title, "—") for column in columns)) for title in COSTS]
    note = (
        "FLOPs of matrix products, convolutions and attention, a multiply-add being two; without reconstruction "
        "losses, alignment encoder and optimiser. Times are those of each run's own machine."
    )
    return Table(("cost", *(run.name for run in runs)), rows, notes=(note,))


def to_markdown(table: Table) -> str:
    """Return a table as Markdown, small print in parentheses."""

    def text(cell: Cell) -> str:
        body = f"**{cell.text}**" if cell.emphasis == "best" else cell.text
        note = f"⚠ {cell.note}" if cell.emphasis == "warning" else cell.note
        return (f"{body} ({note})" if note and body else body or note).replace("|", "\\|")

    lines = [f"| {' | '.join(table.columns)} |", f"|{' --- |' * len(table.columns)}"]
    lines += [f"| {' | '.join(map(text, row))} |" for row in table.cells()]
    caption = [f"**{table.caption}**", ""] if table.caption else []
    return "\n".join([*caption, *lines, *(f"\n{note}" for note in table.notes)])


def _best(key: str, numbers: Sequence[Measured | None]) -> int | None:
    """Return the place of the best number, if all are known and it is apart from the others."""
    better = metric_name(key).better
    known = [number for number in numbers if number is not None and not number.warning]
    if not better or len(known) < len(numbers):
        return None
    best = min(known, key=lambda number: number.value if better == "lower" else -number.value)
    others = [number for number in known if number is not best]
    return known.index(best) if all(_is_apart(best, other) for other in others) else None


def _is_apart(one: Measured, other: Measured) -> bool:
    """Return whether two numbers differ by more than their intervals; not known, and so no, without intervals."""
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.high < other.low or other.high < one.low


def _costs(run: ComparedRun) -> dict[str, str]:
    """Return what is known of a run's costs, by the names in `COSTS`."""
    known = {"training, time": duration(float(run.loaded.checkpoint.state["seconds"]))}
    if run.loaded.model is not None:
        facts = run.loaded.model.sampler_facts()
        known["sampler"] = facts.name
        if facts.passes is not None:
            known["sampling, sequential passes of a batch"] = f"{facts.passes:,}"
    if run.cost is not None:
        images = run.loaded.checkpoint.step * run.loaded.config.training.batch_size
        known["parameters, generative model"] = with_prefix(run.cost.model_parameters)
        known["parameters, autoencoder"] = with_prefix(run.cost.autoencoder_parameters)
        known["training, FLOPs / image"] = with_prefix(run.cost.training_flops, "FLOP")
        known["training, FLOPs in all"] = with_prefix(run.cost.training_flops * images, "FLOP")
        known["sampling, FLOPs / image"] = with_prefix(run.cost.sampling_flops, "FLOP")
    return known


def _curves(runs: Sequence[ComparedRun]) -> list[Part]:
    rows_by_run = {run.name: run.rows for run in runs}
    logged = {key for run in runs for row in run.rows for key in row}
    terms = [term for term in SHARED_TERMS if term in logged]
    parts: list[Part] = []
    for x, label, what in (("step", "optimizer step", "steps"), ("seconds", "seconds of training", "time")):
        panels = _evaluated(runs, x)
        if panels:
            caption = f"Evaluated quality against {what} of training, at each run's own guidance."
            parts.append(plot_panels(panels, label, caption, marker="o"))
        caption = f"Training losses against {what} of training; weighted terms compare at equal weights only."
        plots = plot_terms(rows_by_run, x, terms, caption) if terms else None
        if plots is not None:
            parts.append(plots)
    return parts


def _evaluated(runs: Sequence[ComparedRun], x: str) -> dict[str, dict[str, Curve]]:
    """Return metric -> run -> (x, value) over the evaluated checkpoints, for metrics with two of them somewhere."""
    panels: dict[str, dict[str, Curve]] = {}
    for key in in_order({key for run in runs for key in run.metrics} - {"sampling_seconds"}):
        curves: dict[str, Curve] = {}
        for run in runs:
            points = _points(run, key, x)
            if points:
                curves[run.name] = (sorted(points), [points[at] for at in sorted(points)])
        if any(len(xs) > 1 for xs, _ in curves.values()):
            name = metric_name(key)
            panels["\n".join(filter(None, (name.heading, name.caveat)))] = curves
    return panels


def _points(run: ComparedRun, key: str, x: str) -> dict[float, float]:
    """Return the means over seeds of a metric of the averaged weights, by step or seconds."""
    found: dict[float, list[float]] = {}
    for evaluation in run.evaluations:
        settings = evaluation.settings
        keys = ("weights", "guidance", "autoguidance", "sampling")
        is_alike = all(settings.get(k) == run.setting.get(k) for k in keys)
        if key in evaluation.metrics and is_alike:
            at = settings["step"] if x == "step" else seconds_at(run.rows, settings["step"])
            if at is not None:
                found.setdefault(float(at), []).append(evaluation.metrics[key].value)
    return {at: sum(values) / len(values) for at, values in found.items()}


def _class_name(runs: Sequence[ComparedRun], label: int) -> str:
    """Return what all runs call a class, or its number where they differ."""
    known = [run.loaded.class_names or [] for run in runs]
    names = {names[label] if label < len(names) else str(label) for names in known}
    return shortened_name(names.pop()) if len(names) == 1 else str(label)


def _grids(runs: Sequence[ComparedRun], per_class: int) -> list[Part]:
    """Lay out one figure a noise block: a row is a run, a column is one class and noise index."""
    drawn = [run for run in runs if run.samples is not None]
    if not drawn:
        return []
    parts: list[Part] = []
    labelled = all(run.loaded.num_classes is not None for run in drawn)
    count = min(len(run.indices) for run in drawn)
    width = count // per_class
    for block in range(per_class):
        rows = slice(block * width, (block + 1) * width)
        images = [run.samples[rows] for run in drawn if run.samples is not None]
        if len({part.shape for part in images}) > 1:
            return [Text("Samples of different resolutions are not shown side by side.", is_warning=True)]
        indices = drawn[0].indices[rows]
        classes = class_labels(indices, drawn[0].loaded.num_classes).tolist()
        columns = [_class_name(drawn, label) for label in classes] if labelled else None
        picture = image_grid(np.concatenate(images), width, [run.name for run in drawn], columns)
        what = "class on top, same" if labelled else "same"
        caption = f"Noise indices {indices[0]} to {indices[-1]}: {what} noise index in a column, not chosen."
        parts.append(Figure(png_bytes(picture), caption, "pixels"))
    return parts
