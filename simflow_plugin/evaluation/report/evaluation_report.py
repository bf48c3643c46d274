"""The result of one evaluation as a page and as lines on a terminal."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from simflow_plugin.config.schema import RunConfig
from simflow_plugin.evaluation.report.grids import class_rows, image_grid, png_bytes
from simflow_plugin.evaluation.report.html import Collapsible, Figure, Part, Section, Text, write_report
from simflow_plugin.evaluation.report.metric_names import (
    format_interval,
    format_value,
    in_order,
    metric_name,
    metrics_table,
)
from simflow_plugin.evaluation.result import Evaluation
from simflow_plugin.evaluation.sample_shards import SampleShards

PER_ROW = 12
MAX_ROWS = 10


def write_evaluation_report(evaluation: Evaluation, config: RunConfig, shards: SampleShards | None) -> Path:
    """Write evaluation.html beside the result, and return its path.

    Args:
        evaluation: the result.
        config: of the run.
        shards: the samples to show, or None.
    """
    parts: list[Part] = [Text(provenance(evaluation)), metrics_table(evaluation.metrics)]
    parts += [Text(note) for note in evaluation.notes]
    sections = [Section("Metrics", tuple(parts))]
    if shards is not None:
        sections.append(Section("Samples", (_samples(shards),)))
    sections.append(Section("Configuration", (Collapsible("Resolved configuration", config.to_yaml()),)))
    path = evaluation.folder / "evaluation.html"
    subtitle = f"{config.data.name}, {config.image_size} x {config.image_size} pixels"
    write_report(path, f"Evaluation: {config.name}", sections, subtitle)
    return path


def provenance(evaluation: Evaluation) -> str:
    """Return which weights were evaluated how, in one sentence."""
    settings = evaluation.settings
    weights = {"EMA": "averaged (EMA)", "last": "last training"}[settings["weights"]]
    sampling = ", ".join(f"{key} {value}" for key, value in settings["sampling"].items())
    return (
        f"Step {settings['step']:,}, {weights} weights, guidance {settings['guidance']:g}, noise seed "
        f"{settings['seed']}{', sampler: ' + sampling if sampling else ''}."
    )


def terminal_lines(evaluation: Evaluation) -> list[str]:
    """Return the result as aligned lines."""
    rows = []
    for key in in_order(evaluation.metrics):
        number = evaluation.metrics[key]
        rows.append(
            (
                metric_name(key).heading,
                format_value(key, number),
                format_interval(key, number),
                number.warning,
            )
        )
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    lines = [provenance(evaluation)]
    for title, value, interval, warning in rows:
        line = f"{title:<{widths[0]}}  {value:>{widths[1]}}  {interval:<{widths[2]}}"
        lines.append(f"{line}  ! {warning}" if warning else line.rstrip())
    return lines + list(evaluation.notes)


def _samples(shards: SampleShards) -> Figure:
    images, labels = next(shards.read())
    grid = class_rows(images, labels, PER_ROW) if labels[0] >= 0 else images
    names = [str(label) for label in np.unique(labels)] if len(grid) and labels[0] >= 0 else None
    if len(grid) < PER_ROW or (names is not None and len(grid) != len(names) * PER_ROW):
        grid, names = images, None
    grid = grid[: MAX_ROWS * PER_ROW]
    rows = -(-len(grid) // PER_ROW)
    picture = image_grid(grid, PER_ROW, names[:rows] if names else None)
    return Figure(
        png_bytes(picture),
        "The first samples, not chosen; a row is a class where there are enough.",
        "pixels",
    )
