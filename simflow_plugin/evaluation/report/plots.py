"""Plots as PNG bytes: training curves by term, over steps or seconds, of one run or of several.

Drawn with matplotlib's objects and the Agg canvas alone, so that no global state or display is touched.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLOURS = ("#1f5f8b", "#c2571a", "#3c8d5a", "#8a4f9e", "#b8902a", "#5a6b78", "#b3405e", "#2b9c9c")
INK, LINE = "#333a42", "#d9dbdd"
DPI = 200
"""Two pixels per CSS pixel: figures are sized in hundreds of CSS pixels an inch."""

NOT_LOSSES = frozenset(
    {
        "step",
        "seconds",
        "images_per_second",
        "latent_mean",
        "latent_std",
        "latent_dead",
        "signal_to_noise",
        "nll_floor",
    }
)
NOT_LOSS_PREFIXES = ("lr_", "grad_norm_", "zero_gradient_steps_", "skipped_")
TERM_LABELS = {
    "loss": "loss (weighted sum)",
    "nll": "NLL (nats / latent dim)",
    "l1": "L1 of pixels",
    "l2": "L2 of pixels",
    "lpips": "LPIPS",
    "kl": "KL (nats)",
    "denoising": "denoising error",
    "alignment": "alignment (−cosine)",
    "grad_norm": "gradient norm",
}
X_LABELS = {"step": "step", "seconds": "seconds of training"}

Curve = tuple[Sequence[float], Sequence[float]]
"""(x, y), of one length."""


def plot_terms(
    rows_by_run: Mapping[str, Sequence[Mapping[str, Any]]],
    x: str = "step",
    terms: Sequence[str] | None = None,
) -> bytes | None:
    """Draw one panel per logged term, one line per run.

    Args:
        rows_by_run: name of the run -> rows of its metrics.jsonl.
        x: `step` or `seconds`.
        terms: keys to draw; None draws every loss that any run logged.
    Returns:
        PNG, or None if there is nothing to draw.
    """
    if terms is None:
        terms = list(dict.fromkeys(key for rows in rows_by_run.values() for row in rows for key in row))
        terms = [t for t in terms if t not in NOT_LOSSES and not t.startswith(NOT_LOSS_PREFIXES)]
    panels = {TERM_LABELS.get(t, t.replace("_", " ")): _curves(rows_by_run, x, t) for t in terms}
    panels = {title: curves for title, curves in panels.items() if curves}
    return plot_panels(panels, X_LABELS.get(x, x)) if panels else None


def plot_latents(rows: Sequence[Mapping[str, Any]]) -> bytes | None:
    """Draw how the latents of one run developed: their spread, the spread over sigma, and the NLL above its floor.

    Args:
        rows: of metrics.jsonl.
    Returns:
        PNG, or None if the run logged none of it.
    """
    panels = {
        "spread of the latents' mean": {"spread": "latent_std"},
        "signal to noise (spread / σ)": {"spread / σ": "signal_to_noise"},
        "NLL and its floor (nats / latent dim)": {"NLL": "nll", "floor: entropy of the noise": "nll_floor"},
    }
    drawn = {
        title: {
            name: curve for name, key in lines.items() for curve in _curves({"": rows}, "step", key).values()
        }
        for title, lines in panels.items()
    }
    drawn = {title: curves for title, curves in drawn.items() if curves}
    return plot_panels(drawn, X_LABELS["step"], num_columns=3) if drawn else None


def plot_panels(
    panels: Mapping[str, Mapping[str, Curve]],
    x_label: str,
    y_label: str = "",
    num_columns: int = 2,
    marker: str = "",
) -> bytes:
    """Draw small multiples with one legend.

    Args:
        panels: title -> name of the line -> (x, y); a name has one colour in all panels. Values that are not
            finite leave a gap.
        x_label: below the lowest panels.
        y_label: beside the first panel.
        marker: matplotlib marker of the points.
    """
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    columns = min(num_columns, len(panels))
    rows = -(-len(panels) // columns)
    width = {1: 6.2, 2: 8.8}.get(columns, 9.2)
    figure = Figure(figsize=(width, 2.45 * rows + 0.45), dpi=DPI, facecolor="white", layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for index, (axis, (title, curves)) in enumerate(zip(axes, panels.items(), strict=False)):
        for name, (xs, ys) in curves.items():
            ys = [y if y is not None and math.isfinite(y) else math.nan for y in ys]
            marked = marker or ("o" if len(ys) < 3 else "")
            axis.plot(xs, ys, color=colours[name], linewidth=1.5, marker=marked, markersize=3.5, label=name)
        style_axis(
            axis, title, x_label if index + columns >= len(panels) else "", y_label if index == 0 else ""
        )
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    if len(names) > 1:
        handles = {
            label: h for axis in axes for h, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        legend_columns = min(len(names), 2 if max(map(len, names)) > 24 else 4)
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside lower center",
            ncols=legend_columns,
            frameon=False,
            fontsize=8.5,
        )
    return figure_png(figure)


def style_axis(axis: Axes, title: str, x_label: str, y_label: str) -> None:
    """Give an axis the look of all plots: no box, faint grid, small dark grey text."""
    axis.set_title(title, fontsize=9.5, color=INK, loc="left")
    axis.set_xlabel(x_label, fontsize=8.5, color=INK)
    axis.set_ylabel(y_label, fontsize=8.5, color=INK)
    axis.tick_params(labelsize=8, colors=INK, length=3, width=0.6)
    axis.grid(color=LINE, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.ticklabel_format(style="plain", useOffset=False)
    axis.xaxis.set_major_locator(MaxNLocator(integer=axis.get_xlim()[1] > 2, nbins=8))
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color("#9aa0a6")
        axis.spines[side].set_linewidth(0.6)


def figure_png(figure: Figure) -> bytes:
    """Return a matplotlib figure as PNG bytes, without the writing program's version in it."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def _curves(rows_by_run: Mapping[str, Sequence[Mapping[str, Any]]], x: str, term: str) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for name, rows in rows_by_run.items():
        points = [(row[x], row[term]) for row in rows if x in row and isinstance(row.get(term), int | float)]
        if points:
            xs, ys = zip(*points, strict=True)
            curves[name] = (xs, ys)
    return curves
