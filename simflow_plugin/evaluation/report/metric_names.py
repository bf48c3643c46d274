"""Metrics in tables and lines: title, better direction, digits, order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from simflow_plugin.evaluation.report.html import Cell, Emphasis, Table
from simflow_plugin.evaluation.result import Measured

UNCOMPARABLE = "not comparable between autoencoders"


@dataclass(frozen=True)
class MetricName:
    """Title and format of one metric.

    Args:
        title: of its row.
        better: `lower`, `higher`, or empty where neither is better.
        format: of the value.
        caveat: what must stand beside the value wherever it is shown.
    """

    title: str
    better: str = ""
    format: str = ".3g"
    caveat: str = ""

    @property
    def heading(self) -> str:
        return f"{self.title} {({'lower': '↓', 'higher': '↑'}).get(self.better, '')}".strip()


NAMES = {
    "fid": MetricName("FID", "lower", ".2f"),
    "sfid": MetricName("sFID", "lower", ".2f"),
    "kid": MetricName("KID", "lower", ".4f"),
    "is": MetricName("Inception score", "higher", ".1f"),
    "fd_": MetricName("Fréchet distance", "lower", ".2f"),
    "kd_": MetricName("kernel distance", "lower", ".4f"),
    "precision": MetricName("precision", "higher", ".3f"),
    "recall": MetricName("recall", "higher", ".3f"),
    "precision_": MetricName("precision", "higher", ".3f"),
    "recall_": MetricName("recall", "higher", ".3f"),
    "class_agreement": MetricName("class agreement (judge)", "higher", ".1%"),
    "diversity_ratio": MetricName("diversity ratio (1 = real)", "", ".3f"),
    "rfid": MetricName("rFID", "lower", ".2f"),
    "rfd_": MetricName("reconstruction Fréchet distance", "lower", ".2f"),
    "fid_to_reconstructions": MetricName("FID to reconstructions", "lower", ".2f"),
    "fd_to_reconstructions_": MetricName("Fréchet distance to reconstructions", "lower", ".2f"),
    "psnr": MetricName("PSNR, dB", "higher", ".2f"),
    "ssim": MetricName("SSIM", "higher", ".4f"),
    "lpips": MetricName("LPIPS (AlexNet)", "lower", ".4f"),
    "image_bits_per_dim": MetricName("image bits / dim, upper bound", "lower", ".3f"),
    # Not comparable between autoencoders, so neither direction is better.
    "latent_bits_per_dim": MetricName("latent bits / dim", "", ".3f", UNCOMPARABLE),
    "classification_accuracy": MetricName("accuracy of argmax log p(z | y)", "higher", ".1%"),
    "auroc_latent": MetricName("AUROC of log p(z)", "higher", ".3f"),
    "auroc_image": MetricName("AUROC of the image bound", "higher", ".3f"),
    "sampling_seconds": MetricName("seconds / sample", "lower", ".3g"),
}
"""In the order of a table; a name that ends in `_` stands for a family, and is followed by the features' extractor."""
INTERVALS_NOTE = (
    "Intervals are 95 %. A Monte-Carlo error is one standard error of other posterior draws for the same images; an "
    "interval over images holds it too."
)


def _name_of(key: str) -> str:
    """Return the name in `NAMES` of a metric or its family; empty for one that is not there."""
    if key in NAMES:
        return key
    families = (name for name in NAMES if name.endswith("_") and key.startswith(name))
    return max(families, key=len, default="")


def metric_name(key: str) -> MetricName:
    """Return how the metric `key` is shown; `fd_<extractor>` and its like are named with their extractor."""
    name = _name_of(key)
    if not name:
        return MetricName(key.replace("_", " "))
    if name == key:
        return NAMES[key]
    return replace(NAMES[name], title=f"{NAMES[name].title} ({key.removeprefix(name)})")


def in_order(keys: Iterable[str]) -> list[str]:
    """Return the keys in the order of a table: samples, reconstruction, likelihood, cost; unknown ones last."""
    places = {name: place for place, name in enumerate(NAMES)}
    return sorted(keys, key=lambda key: (places.get(_name_of(key), len(NAMES)), key))


def format_value(key: str, number: Measured) -> str:
    """Return the value as text."""
    return format(number.value, metric_name(key).format)


def format_draws_error(number: Measured) -> str:
    """Return `Monte-Carlo error` and its first two digits, or nothing."""
    return "" if number.draws_error is None else f"Monte-Carlo error {number.draws_error:.2g}"


def _small_print(key: str, number: Measured, remark: str) -> str:
    """Return interval, Monte-Carlo error and a remark, as far as there are any."""
    form, interval = metric_name(key).format, ""
    if number.low is not None and number.high is not None:
        interval = f"{number.low:{form}} to {number.high:{form}}"
    return "; ".join(filter(None, (interval, format_draws_error(number), remark)))


def metric_lines(metrics: Mapping[str, Measured]) -> list[str]:
    """Return metrics as aligned lines: name, value, errors, warning."""
    rows = []
    for key in in_order(metrics):
        number, name = metrics[key], metric_name(key)
        errors = _small_print(key, number, name.caveat)
        rows.append((name.heading, format_value(key, number), errors, number.warning))
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    lines = []
    for title, value, errors, warning in rows:
        line = f"{title:<{widths[0]}}  {value:>{widths[1]}}  {errors:<{widths[2]}}"
        lines.append(f"{line}  ! {warning}" if warning else line.rstrip())
    return lines


def metric_cell(key: str, number: Measured | None, is_best: bool = False) -> Cell:
    """Return a table cell: the value, below it the interval, and the warning if there is one."""
    if number is None:
        return Cell("—")
    emphasis: Emphasis = "warning" if number.warning else "best" if is_best else "none"
    return Cell(format_value(key, number), _small_print(key, number, number.warning), emphasis)


def metrics_table(metrics: Mapping[str, Measured]) -> Table:
    """Return the metrics of one evaluation, with what each was measured on."""
    rows = []
    for key in in_order(metrics):
        name, number = metric_name(key), metrics[key]
        interval = f"interval: {number.interval}" if number.interval else ""
        measured_on = "; ".join(filter(None, (number.on, interval, name.caveat)))
        rows.append((name.heading, metric_cell(key, number), Cell("", measured_on)))
    return Table(("metric", "value", "measured on"), rows, notes=(INTERVALS_NOTE,))
