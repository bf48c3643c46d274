"""The analysis of a run as a page, and as PNG files beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from simflow_plugin.evaluation.analysis import Analysis
from simflow_plugin.evaluation.report.html import (
    Cell,
    Figure,
    Part,
    Plots,
    Section,
    Table,
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
        figures = [part for part in section.parts if isinstance(part, Figure)]
        figures += [f for part in section.parts if isinstance(part, Plots) for f in part.figures]
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


def analysis_sections(analysis: Analysis) -> list[Section]:
    """Return the sections of an analysis, for its own page or for another report."""
    return [
        Section("Latent statistics", [_statistics_table(analysis), _spectrum(analysis)]),
        Section("Decoder robustness", [_robustness(analysis)]),
        Section("Interpolation", [strips_figure(analysis.strips, analysis.strip_names)]),
        Section("Flow", _flow_parts(analysis)),
    ]


def _statistics_table(analysis: Analysis) -> Table:
    rows: list[Sequence[str | Cell]] = []
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
    return Table(("statistic", "posterior mean", "posterior sample", "white noise"), rows, notes=notes)


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


def _flow_parts(analysis: Analysis) -> list[Part]:
    flow = analysis.flow
    if flow is None:
        return []
    rows = (
        ("mean", f"{flow.noise_mean:.4f}", "0"),
        ("variance", f"{flow.noise_variance:.4f}", "1"),
        ("correlation of neighbouring tokens", f"{flow.token_correlation:.4f}", "0"),
        ("mean absolute correlation of channels", f"{flow.channel_correlation:.4f}", "0"),
    )
    by_block, by_token = "log-det by block, nats / dim", "variance of the noise by token"
    blocks = (range(1, len(flow.logdet_per_dim) + 1), flow.logdet_per_dim.tolist())
    tokens = (range(len(flow.mean_by_token)), flow.variance_by_token.tolist())
    block_label = "block, training order; the last is the deep one"
    parts: list[Part] = [
        Table(("noise of held-out latents", "found", "N(0, I)"), rows),
        plot_panels({by_block: {"log-det": blocks}}, block_label, f"{by_block}.", marker="o"),
        plot_panels({by_token: {"variance": tokens}}, "token, raster order", f"{by_token}."),
    ]
    if analysis.jacobi is not None:
        parts.append(_jacobi(analysis.jacobi, analysis.num_tokens))
    return parts


def _jacobi(iterations: dict[float, list[int]], num_tokens: int) -> Table:
    num_blocks = len(next(iter(iterations.values())))
    names = [f"block {n}{' (deep)' if n == num_blocks else ''}" for n in range(1, num_blocks + 1)]
    rows = [(f"{tolerance:g}", *map(str, counts)) for tolerance, counts in iterations.items()]
    note = f"One token after the other takes {num_tokens}. Tolerance: largest relative change of a token."
    return Table(("tolerance", *names), rows, "Jacobi iterations until a block converges", (note,))
