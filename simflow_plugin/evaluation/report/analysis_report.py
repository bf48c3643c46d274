"""The analysis of a run as a page, and as PNG files beside it."""

from __future__ import annotations

import json
from pathlib import Path

from simflow_plugin.evaluation.analysis import Analysis
from simflow_plugin.evaluation.report.html import (
    Cell,
    Figure,
    Part,
    Plots,
    Section,
    Table,
    Text,
    write_report,
)
from simflow_plugin.evaluation.report.interpolations import strips_figure
from simflow_plugin.evaluation.report.metric_names import metric_name
from simflow_plugin.evaluation.report.plots import Curve, plot_panels
from simflow_plugin.files import replacing, write_text_atomically
from simflow_plugin.runs.loaded_run import LoadedRun

STATISTICS = {
    "spectral_entropy": "spectral entropy (1 = flat)",
    "high_frequency_ratio": "high-frequency ratio",
    "total_variation": "total variation",
    "autocorrelation": "autocorrelation at distance 1",
}


def write_analysis(loaded: LoadedRun, analysis: Analysis) -> Path:
    """Write RUN/analysis/: analysis.json, one PNG a picture, analysis.html. Return the page's path."""
    folder = loaded.directory.path / "analysis"
    folder.mkdir(exist_ok=True)
    write_text_atomically(folder / "analysis.json", json.dumps(analysis.to_json(), indent=1) + "\n")
    sections = analysis_sections(analysis)
    for section in sections:
        figures = [figure for part in section.parts for figure in _figures_of(part)]
        for number, figure in enumerate(figures):
            with replacing(folder / f"{section.anchor}{f'_{number + 1}' if number else ''}.png") as picture:
                picture.write_bytes(figure.png)
    config = loaded.config
    subtitle = (
        f"{config.data.name}, {config.image_size} x {config.image_size} pixels, held-out images; "
        f"step {loaded.checkpoint.step:,}, {loaded.weights_name} weights, computed in {analysis.precision}"
    )
    path = folder / "analysis.html"
    write_report(path, f"Analysis: {config.name}", sections, subtitle)
    return path


def _figures_of(part: Part) -> list[Figure]:
    if isinstance(part, Plots):
        return part.figures
    return [part] if isinstance(part, Figure) else []


def analysis_sections(analysis: Analysis) -> list[Section]:
    """Return the sections of an analysis, for its own page or for another report."""
    sections = [
        Section("Latent statistics", (_statistics_table(analysis), _spectrum(analysis))),
        Section("Decoder robustness", (_robustness(analysis),)),
        Section("Interpolation", (_strips(analysis),)),
    ]
    flow = _flow_parts(analysis)
    return [*sections, Section("Flow", tuple(flow))] if flow else sections


def _statistics_table(analysis: Analysis) -> Table:
    rows: list[tuple[str | Cell, ...]] = []
    for name, title in STATISTICS.items():
        cells = []
        for suffix in ("", "_of_samples"):
            number = analysis.metrics[name + suffix]
            cells.append(Cell(f"{number.value:.3f}", f"{number.low:.3f} to {number.high:.3f}"))
        rows.append((title, *cells, f"{analysis.white_noise[name]:.2f}"))
    notes = (
        f"{analysis.metrics['autocorrelation'].on.split(',')[0]}; channels at mean 0, variance 1. High: above half the "
        "Nyquist frequency. 95 % bootstrap intervals.",
        "Published for SimFlow's end-to-end training (arXiv:2512.04084), with definitions that may differ, so compare "
        "directions: high-frequency ratio 0.24 to 0.09, total variation 0.71 to 0.47, autocorrelation 0.06 to 0.54.",
    )
    return Table(("statistic", "posterior mean", "posterior sample", "white noise"), tuple(rows), "", notes)


def _spectrum(analysis: Analysis) -> Plots:
    return plot_panels(
        {"power, relative to white noise": analysis.spectrum},
        "cycles per latent position",
        "Radial power spectrum of the latents: what is right of 0.25 counts as high frequency.",
    )


def _robustness(analysis: Analysis) -> Plots:
    panels: dict[str, dict[str, Curve]] = {
        metric_name(name).title: {"decoded": (list(curve), [number.value for number in curve.values()])}
        for name, curve in analysis.robustness.items()
    }
    caption = (
        "Closeness to the original of images decoded from the posterior mean plus Gaussian noise. The posterior's own "
        f"standard deviation is {analysis.posterior_std:.3g} in the same units."
    )
    return plot_panels(panels, "std of noise on the latents", caption, marker="o")


def _strips(analysis: Analysis) -> Part:
    if analysis.strips.shape[0] == 0:
        return Text("Too few images for a pair.")
    return strips_figure(analysis.strips, analysis.strip_names)


def _flow_parts(analysis: Analysis) -> list[Part]:
    flow = analysis.flow
    if flow is None:
        return []
    num_blocks = len(flow.logdet_per_dim)
    blocks = list(range(1, num_blocks + 1))
    tokens = list(range(len(flow.mean_by_token)))
    panels = {
        "log-det by block, nats / dim": {"log-det": (blocks, flow.logdet_per_dim.tolist())},
        "variance of the noise by token": {"variance": (tokens, flow.variance_by_token.tolist())},
    }
    rows = (
        ("mean", f"{flow.noise_mean:.4f}", "0"),
        ("variance", f"{flow.noise_variance:.4f}", "1"),
        ("correlation of neighbouring tokens", f"{flow.token_correlation:.4f}", "0"),
        ("mean absolute correlation of channels", f"{flow.channel_correlation:.4f}", "0"),
    )
    parts: list[Part] = [Table(("noise of held-out latents", "found", "N(0, I)"), rows)]
    for title, curves in panels.items():
        x_label = (
            "block, training order; the last is the deep one" if "block" in title else "token, raster order"
        )
        marker = "o" if "block" in title else ""
        parts.append(plot_panels({title: curves}, x_label, f"{title}.", marker))
    if analysis.jacobi is not None:
        parts.append(_jacobi(analysis))
    return parts


def _jacobi(analysis: Analysis) -> Table:
    assert analysis.jacobi is not None
    num_blocks = len(next(iter(analysis.jacobi.values())))
    names = [f"block {n}{' (deep)' if n == num_blocks else ''}" for n in range(1, num_blocks + 1)]
    rows = tuple((f"{tolerance:g}", *map(str, counts)) for tolerance, counts in analysis.jacobi.items())
    note = f"One token after the other takes {analysis.num_tokens}. Tolerance: largest relative change of a token."
    return Table(("tolerance", *names), rows, "Jacobi iterations until a block converges", (note,))
