"""Plots of a report: training curves by term, over steps or seconds, of one run or of several.

Drawn with matplotlib's objects and the Agg canvas alone, so that no global state or display is touched.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from simflow_plugin.evaluation.report.html import Plots

COLOURS = ("#1f5f8b", "#c2571a", "#3c8d5a", "#8a4f9e", "#b8902a", "#5a6b78", "#b3405e", "#2b9c9c")
INK, LINE = "#333a42", "#d9dbdd"
DPI = 200
"""Two pixels per CSS pixel: figures are sized in hundreds of CSS pixels an inch."""
SIZE = (4.4, 2.5)
"""Inches of a plot: two beside each other on a page, one on a phone."""
FAR = 3.0
"""Times the usual value or range beyond which the largest one would flatten the rest of a curve."""

NOT_LOSSES = re.compile(
    "step|seconds|images_per_second|latent_mean|latent_std|latent_dead|signal_to_noise|nll_floor|"
    "(lr|grad_norm|zero_gradient_steps|skipped)_.*"
)
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
    caption: str = "",
) -> Plots | None:
    """Draw one plot per logged term, one line per run.

    Args:
        rows_by_run: name of the run -> rows of its metrics.jsonl.
        x: `step` or `seconds`.
        terms: keys to draw; None draws every loss that any run logged.
    Returns:
        None if there is nothing to draw.
    """
    if terms is None:
        terms = list(dict.fromkeys(key for rows in rows_by_run.values() for row in rows for key in row))
        terms = [term for term in terms if not NOT_LOSSES.fullmatch(term)]
    panels = {TERM_LABELS.get(t, t.replace("_", " ")): _curves(rows_by_run, x, t) for t in terms}
    return _plot_logged(panels, X_LABELS.get(x, x), caption)


def plot_latents(rows: Sequence[Mapping[str, Any]], caption: str = "") -> Plots | None:
    """Draw how the latents of one run developed: their spread, the spread over sigma, and the NLL above its floor.

    Returns:
        None if the run logged none of it.
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
    return _plot_logged(drawn, X_LABELS["step"], caption)


def _plot_logged(panels: Mapping[str, Mapping[str, Curve]], x_label: str, caption: str) -> Plots | None:
    logged = {title: curves for title, curves in panels.items() if curves}
    return plot_panels(logged, x_label, caption) if logged else None


def plot_panels(
    panels: Mapping[str, Mapping[str, Curve]], x_label: str, caption: str = "", marker: str = ""
) -> Plots:
    """Draw small plots of one legend.

    Args:
        panels: title -> name of the line -> (x, y); a name has one colour in all of them. Values that are not
            finite leave a gap.
        x_label: below each; seconds become minutes or hours where they are many.
    """
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    unit, x_label = _time_unit(panels, x_label)
    drawn = []
    for title, curves in panels.items():
        figure = Figure(figsize=SIZE, dpi=DPI, facecolor="white", layout="constrained")
        axis = figure.subplots()
        shown: list[float] = []
        for name, (xs, ys) in curves.items():
            ys = [y if y is not None and math.isfinite(y) else math.nan for y in ys]
            marked = marker or ("o" if len(ys) < 3 else "")
            axis.plot(
                [x / unit for x in xs], ys, color=colours[name], linewidth=1.5, marker=marked, markersize=3.5
            )
            shown += [y for y in ys if not math.isnan(y)]
        style_axis(axis, title, x_label)
        fit_scale(axis, shown)
        drawn.append((title, figure_png(figure)))
    return Plots(tuple(drawn), tuple(colours.items()) if len(names) > 1 else (), caption)


def _time_unit(panels: Mapping[str, Mapping[str, Curve]], x_label: str) -> tuple[float, str]:
    """Return what to divide x by, and its label: seconds, minutes or hours, by the longest line."""
    if not x_label.startswith("seconds"):
        return 1.0, x_label
    longest = max((x for curves in panels.values() for xs, _ in curves.values() for x in xs), default=0.0)
    unit, name = next(
        (u for u in ((3600.0, "hours"), (60.0, "minutes")) if longest > 2 * u[0]), (1.0, "seconds")
    )
    return unit, x_label.replace("seconds", name, 1)


def fit_scale(axis: Axes, values: Sequence[float]) -> None:
    """Choose a vertical scale on which all of a curve can be read, not its first steps alone.

    Positive values of which the largest is far above the usual are drawn on a log axis. With values of both signs a few
    outliers are left outside, and the plot states how far they reach.
    """
    if not values:
        return
    if min(values) > 0:
        if max(values) > FAR * float(np.median(values)) or max(values) > FAR**2 * min(values):
            _use_log_axis(axis, max(values) / min(values))
        return
    low, high = np.quantile(values, (0.05, 0.95)).tolist()
    span = high - low
    place: dict[str, Any] = {"transform": axis.transAxes, "ha": "right", "fontsize": 8, "color": INK}
    is_above, is_below = max(values) - high > FAR * span > 0, low - min(values) > FAR * span > 0
    if is_above:
        axis.text(0.99, 0.97, f"outside: up to {max(values):.3g}", va="top", **place)
    if is_below:
        axis.text(0.99, 0.03, f"outside: down to {min(values):.3g}", va="bottom", **place)
    if is_above or is_below:  # both ends: the other one's margin would be a share of the outlier
        bottom = low - 0.3 * span if is_below else min(values) - 0.1 * span
        axis.set_ylim(bottom, high + 0.3 * span if is_above else max(values) + 0.1 * span)


def _use_log_axis(axis: Axes, ratio: float) -> None:
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if ratio < 1e3 else (1,)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def style_axis(axis: Axes, title: str, x_label: str) -> None:
    """Give an axis the look of all plots: no box, faint grid, small dark grey text."""
    axis.set_title(title, fontsize=9.5, color=INK, loc="left")
    axis.set_xlabel(x_label, fontsize=8.5, color=INK)
    axis.tick_params(labelsize=8, colors=INK, length=3, width=0.6)
    axis.grid(color=LINE, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.ticklabel_format(style="plain", useOffset=False)
    axis.xaxis.set_major_locator(MaxNLocator(integer=axis.get_xlim()[1] > 2, nbins=6))
    axis.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:,.5g}" if value < 1e4 else f"{value:,.0f}")
    )
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
