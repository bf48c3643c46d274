"""Names of metrics in tables: title, better direction, digits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from simflow_plugin.evaluation.report.html import Cell, Table
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
    "precision": MetricName("precision", "higher", ".3f"),
    "recall": MetricName("recall", "higher", ".3f"),
    "class_agreement": MetricName("class agreement (judge)", "higher", ".1%"),
    "diversity_ratio": MetricName("diversity ratio (1 = real)", "", ".3f"),
    "rfid": MetricName("rFID", "lower", ".2f"),
    "fid_to_reconstructions": MetricName("FID to reconstructions", "lower", ".2f"),
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
FAMILIES = {
    "fd_to_reconstructions_": MetricName("Fréchet distance to reconstructions", "lower", ".2f"),
    "fd_": MetricName("Fréchet distance", "lower", ".2f"),
    "rfd_": MetricName("reconstruction Fréchet distance", "lower", ".2f"),
    "kd_": MetricName("kernel distance", "lower", ".4f"),
    "precision_": MetricName("precision", "higher", ".3f"),
    "recall_": MetricName("recall", "higher", ".3f"),
}


INTERVALS_NOTE = (
    "Intervals are 95 %. A Monte-Carlo error is one standard error of other posterior draws for the same images; an "
    "interval over images holds it too."
)


def metric_name(key: str) -> MetricName:
    """Return how the metric `key` is shown; `fd_<extractor>` and its like are named with their extractor."""
    if key in NAMES:
        return NAMES[key]
    for prefix, family in FAMILIES.items():
        if key.startswith(prefix):
            return MetricName(f"{family.title} ({key.removeprefix(prefix)})", family.better, family.format)
    return MetricName(key.replace("_", " "))


def in_order(keys: Mapping[str, object]) -> list[str]:
    """Return the keys in the order of a table: samples, reconstruction, likelihood, cost."""
    families = list(FAMILIES)
    order = list(NAMES)

    def rank(key: str) -> tuple[int, str]:
        if key in order:
            return order.index(key), ""
        near = {"fd_": "is", "kd_": "is", "precision_": "recall", "recall_": "recall", "rfd_": "rfid"}
        near["fd_to_reconstructions_"] = "fid_to_reconstructions"
        prefix = next((p for p in families if key.startswith(p)), None)
        return (order.index(near[prefix]) if prefix else len(order)), key

    return sorted(keys, key=rank)


def format_value(key: str, number: Measured) -> str:
    """Return the value as text."""
    return format(number.value, metric_name(key).format)


def format_interval(key: str, number: Measured) -> str:
    """Return `low to high`, or nothing."""
    if number.low is None or number.high is None:
        return ""
    form = metric_name(key).format
    return f"{number.low:{form}} to {number.high:{form}}"


def format_draws_error(number: Measured) -> str:
    """Return `Monte-Carlo error` and its first two digits, or nothing."""
    return "" if number.draws_error is None else f"Monte-Carlo error {number.draws_error:.2g}"


def metric_lines(metrics: Mapping[str, Measured]) -> list[str]:
    """Return metrics as aligned lines: name, value, errors, warning."""
    rows = []
    for key in in_order(metrics):
        number = metrics[key]
        small_print = (format_interval(key, number), format_draws_error(number), metric_name(key).caveat)
        errors = "; ".join(filter(None, small_print))
        rows.append((metric_name(key).heading, format_value(key, number), errors, number.warning))
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
    small_print = (format_interval(key, number), format_draws_error(number), number.warning)
    note = "; ".join(filter(None, small_print))
    return Cell(
        format_value(key, number), note, "warning" if number.warning else "best" if is_best else "none"
    )


def metrics_table(metrics: Mapping[str, Measured], caption: str = "") -> Table:
    """Return the metrics of one evaluation, with what each was measured on."""
    rows = tuple(
        (metric_name(key).heading, metric_cell(key, metrics[key]), Cell("", _measured_on(key, metrics[key])))
        for key in in_order(metrics)
    )
    return Table(("metric", "value", "measured on"), rows, caption, (INTERVALS_NOTE,))


def _measured_on(key: str, number: Measured) -> str:
    interval = f"interval: {number.interval}" if number.interval else ""
    return "; ".join(filter(None, (number.on, interval, metric_name(key).caveat)))
