"""A study over several seeds: one directory each, and a table of means with their spread."""

from __future__ import annotations

from statistics import mean
from typing import Any

from simflow_plugin.studies.definitions import Study
from simflow_plugin.studies.table import (
    AGREEMENT,
    distance_name,
    same_order_pairs,
    table_line,
    to_reconstructions_name,
)


def seeds_table(study: Study, document_by_seed: dict[int, dict[str, Any]]) -> str:
    """Return a Markdown table: mean over seeds, and lowest to highest, of every variant measured with all of them.

    Args:
        study: that was run.
        document_by_seed: the content of each seed's study.json.
    """
    columns = [
        (f"FD ({study.extractor})", distance_name(study), ".2f", 1.0),
        ("rFD", f"r{distance_name(study)}", ".2f", 1.0),
        ("FD to reconstructions", to_reconstructions_name(study), ".2f", 1.0),
        ("class agreement, %", AGREEMENT, ".1f", 100.0),
        ("PSNR, dB", "psnr", ".2f", 1.0),
    ]
    titles = ["variant", "guidance", *(title for title, *_ in columns)]
    lines = [
        f"# {study.title}: {len(document_by_seed)} seeds",
        "",
        table_line(titles),
        table_line(["---"] * len(titles)),
    ]
    for variant in study.variants:
        measured = [document["variants"].get(variant.name) for document in document_by_seed.values()]
        if None in measured:
            continue
        for weight in (f"{guidance:g}" for guidance in study.guidance):
            rows: list[dict[str, float]] = [one["metrics"][weight] for one in measured if one is not None]
            cells = [
                _spread([scale * row[name] for row in rows if name in row], spec)
                for _, name, spec, scale in columns
            ]
            lines.append(table_line([variant.label, weight, *cells]))
    seeds = ", ".join(map(str, document_by_seed))
    lines += ["", f"- Mean over the seeds {seeds}; in brackets the lowest and the highest."]
    if study.published_as:
        counts = [same_order_pairs(study, document["variants"]) for document in document_by_seed.values()]
        pairs = ", ".join(f"{same} of {total}" for same, total in counts)
        lines.append(f"- Pairs of variants ordered as published by FD, seed by seed: {pairs}.")
    return "\n".join(lines) + "\n"


def _spread(values: list[float], spec: str) -> str:
    if not values:
        return "-"
    return f"{mean(values):{spec}} [{min(values):{spec}}, {max(values):{spec}}]"
