"""Tables of a study as Markdown: measured numbers beside the published order, and means over seeds."""

from __future__ import annotations

from itertools import combinations
from statistics import mean
from typing import Any

from simflow_plugin.studies.definitions import Study

AGREEMENT = "class_agreement"
LATENT_BITS = "latent_bits_per_dim"


def distance_name(study: Study) -> str:
    """Return the metric of the distance to real images, in the study's features."""
    return f"fd_{study.suffix}"


def to_reconstructions_name(study: Study) -> str:
    """Return the metric of the distance to reconstructions of real images."""
    return f"fd_to_reconstructions_{study.suffix}"


def to_markdown(study: Study, document: dict[str, Any]) -> str:
    """Return title, table and notes of a study.

    Args:
        document: the content of study.json; variants that are not measured yet are named below the table.
    """
    lines = [f"# {study.title}", "", *_table(_rows(study, document)), "", *_notes(study, document)]
    return "\n".join(lines) + "\n"


def seeds_table(study: Study, document_by_seed: dict[int, dict[str, Any]]) -> str:
    """Return a Markdown table: mean over seeds, and lowest to highest, of every variant measured with all of them.

    Args:
        document_by_seed: the content of each seed's study.json.
    """
    columns = [
        (f"FD ({study.extractor})", distance_name(study), ".2f", 1.0),
        ("rFD", f"r{distance_name(study)}", ".2f", 1.0),
        ("FD to reconstructions", to_reconstructions_name(study), ".2f", 1.0),
        ("class agreement, %", AGREEMENT, ".1f", 100.0),
        ("PSNR, dB", "psnr", ".2f", 1.0),
    ]
    rows = []
    for variant in study.variants:
        measured = [document["variants"].get(variant.name) for document in document_by_seed.values()]
        if None in measured:
            continue
        for weight in (f"{guidance:g}" for guidance in study.guidance):
            by_seed: list[dict[str, float]] = [one["metrics"][weight] for one in measured if one is not None]
            cells = {
                title: _spread([scale * metrics[name] for metrics in by_seed if name in metrics], spec)
                for title, name, spec, scale in columns
            }
            rows.append({"variant": variant.label, "guidance": weight, **cells})
    seeds = ", ".join(map(str, document_by_seed))
    lines = [f"# {study.title}: {len(document_by_seed)} seeds", "", *_table(rows)]
    lines += ["", f"- Mean over the seeds {seeds}; in brackets the lowest and the highest."]
    if study.published_as:
        counts = [same_order_pairs(study, document["variants"]) for document in document_by_seed.values()]
        pairs = ", ".join(f"{same} of {total}" for same, total in counts)
        lines.append(f"- Pairs of variants ordered as published by FD, seed by seed: {pairs}.")
    return "\n".join(lines) + "\n"


def same_order_pairs(
    study: Study, variants: dict[str, Any], metric: str | None = None, sign: int = 1
) -> tuple[int, int]:
    """Return how many pairs of variants are ordered as published, and how many pairs there are.

    Args:
        variants: measured so far, by name; those without the metric are left out.
        metric: that orders them; None for the distance to real images.
        sign: 1 if lower is better, as for the published figure; -1 if higher is.
    """
    metric = metric or distance_name(study)
    known = [
        (v.published, sign * _at(variants[v.name], study)[metric])
        for v in study.variants
        if v.published is not None and metric in _at(variants.get(v.name), study)
    ]
    pairs = list(combinations(known, 2))
    return sum((a[0] < b[0]) == (a[1] < b[1]) for a, b in pairs), len(pairs)


def _at(measured: dict[str, Any] | None, study: Study) -> dict[str, float]:
    """Return the metrics at the study's first guidance; none of a variant that is not measured."""
    return {} if measured is None else measured["metrics"][f"{study.guidance[0]:g}"]


def _rows(study: Study, document: dict[str, Any]) -> list[dict[str, str]]:
    """Return the cells of each row by their column's heading."""
    variants = document["variants"]
    done = [v for v in study.variants if v.name in variants]
    here = _ranks({v.name: _at(variants[v.name], study)[distance_name(study)] for v in done})
    published = _ranks({v.name: v.published for v in done if v.published is not None})
    rows = []
    for variant in done:
        measured = variants[variant.name]
        without_guidance = _at(measured, study)
        for guidance, metrics in measured["metrics"].items():
            cost, intervals = measured["cost"][guidance], measured["intervals"][guidance]
            row = {
                "variant": variant.label,
                "guidance": guidance,
                f"FD ({study.extractor})": _number(metrics.get(distance_name(study)), ".3f"),
                "class agreement (95 %)": _with_interval(metrics.get(AGREEMENT), intervals.get(AGREEMENT)),
                "diversity": _number(metrics.get("diversity_ratio"), ".2f"),
                "precision / recall": _precision_recall(metrics, study),
                "rFD": _number(without_guidance.get(f"r{distance_name(study)}"), ".3f"),
                "FD to reconstructions": _number(metrics.get(to_reconstructions_name(study)), ".3f"),
                "PSNR, dB": _number(without_guidance.get("psnr"), ".2f"),
                "bits/dim (latent)": _latent_bits(measured, study),
                "model / VAE parameters": " / ".join(
                    f"{cost[f'{part}_parameters'] / 1e6:.2f} M" for part in ("model", "autoencoder")
                ),
                "MFLOPs/image: train": _number(cost.get("training_flops"), ".0f", 1e-6),
                "sample": _number(cost.get("sampling_flops"), ".0f", 1e-6),
                **_training(measured, cost, document["autoencoders"].get(variant.autoencoder)),
            }
            if study.published_as:
                row["order here"] = str(here[variant.name])
                row["published"] = _number(variant.published, ".2f")
                row["order published"] = str(published.get(variant.name, "-"))
            rows.append(row)
    return rows


def _latent_bits(measured: dict[str, Any], study: Study) -> str:
    """Return bits per latent dimension, and the Monte-Carlo error where the study has it."""
    text = _number(_at(measured, study).get(LATENT_BITS), ".3f")
    errors = measured.get("draws_errors", {}).get(f"{study.guidance[0]:g}", {})
    return f"{text} ± {errors[LATENT_BITS]:.1g}" if LATENT_BITS in errors else text


def _training(
    measured: dict[str, Any], cost: dict[str, Any], before: dict[str, Any] | None
) -> dict[str, str]:
    """Return steps, TFLOPs and seconds of a variant, those of the autoencoder it starts from named or included."""
    stages = [cost] if before is None else [cost, before]
    flops = None  # unknown for a study that an earlier version began, until it is run again
    if "batch_size" in measured and all("training_flops" in stage for stage in stages):
        flops = measured["batch_size"] * sum(stage["steps"] * stage["training_flops"] for stage in stages)
    return {
        "steps (+ VAE's before)": " + ".join(str(stage["steps"]) for stage in stages),
        "TFLOPs of training, VAE's included": _number(flops, ".1f", 1e-12),
        "train s (+ VAE's before)": " + ".join(f"{stage['train_seconds']:.0f}" for stage in stages),
    }


def _notes(study: Study, document: dict[str, Any]) -> list[str]:
    settings, variants = document["settings"], document["variants"]
    notes = [
        f"Budget {settings['budget']:g}; {settings['num_samples']} samples a row against the test split; "
        f"{settings['num_held_out']} held-out images for PSNR and likelihood; averaged (EMA) weights.",
        f"FD ({study.extractor}): Fréchet distance in {_space(study)}; it is no FID. Precision and recall: in the same "
        "features. rFD: of reconstructions of the held-out images to these images. FD to reconstructions: of samples "
        "to those reconstructions, so that the autoencoder's own error is left out.",
        "Class agreement: share of samples that the judge, a classifier of `simflow pretrain-encoder`, gives the class "
        "that was asked for. Diversity: mean pairwise pixel distance within a class, samples over real images.",
        "Bits per dimension are of the latent: they compare rows with the same autoencoder only; ± is the standard "
        "error that the posterior draws leave, for the same images.",
        "Training FLOPs are those of one image, forward and backward, without the frozen alignment encoder.",
    ]
    if "real" in document:
        real = document["real"]
        notes.append(
            f"Real training images, as many, against the test split: FD {real[distance_name(study)]:.3f}; the judge is "
            f"right on {real[AGREEMENT]:.1%} of the test split."
        )
    if study.published_as:
        by = [
            ("FD", distance_name(study), 1),
            ("FD to reconstructions", to_reconstructions_name(study), 1),
            ("class agreement", AGREEMENT, -1),
        ]
        counts = [(title, *same_order_pairs(study, variants, metric, sign)) for title, metric, sign in by]
        pairs = ", ".join(f"{same} of {total} by {title}" for title, same, total in counts)
        notes.append(f"Published: {study.published_as}. Pairs of variants ordered as published: {pairs}.")
    missing = [v.label for v in study.variants if v.name not in variants]
    if missing:
        notes.append(f"Not measured yet: {', '.join(missing)}.")
    return [f"- {note}" for note in notes]


def _space(study: Study) -> str:
    """Return the feature space of the distances in words."""
    if study.extractor == "pretrained":
        return "the features of the judge"
    return "the pooled features of that network of timm, which sees images enlarged to the pixels after the @"


def _precision_recall(metrics: dict[str, Any], study: Study) -> str:
    values = (metrics.get(f"{name}_{study.suffix}") for name in ("precision", "recall"))
    return " / ".join(_number(value, ".3f") for value in values)


def _ranks(values: dict[str, Any]) -> dict[str, int]:
    """Return the place of each, 1 for the lowest."""
    return {name: place for place, name in enumerate(sorted(values, key=lambda n: values[n]), 1)}


def _number(value: float | None, spec: str, scale: float = 1.0) -> str:
    return "-" if value is None else format(scale * value, spec)


def _with_interval(value: float | None, interval: list[float] | None) -> str:
    text = _number(value, ".1%")
    return text if interval is None else f"{text} ({interval[0]:.1%} to {interval[1]:.1%})"


def _spread(values: list[float], spec: str) -> str:
    if not values:
        return "-"
    return f"{mean(values):{spec}} [{min(values):{spec}}, {max(values):{spec}}]"


def _table(rows: list[dict[str, str]]) -> list[str]:
    """Return a Markdown table of rows with the same headings; nothing without rows."""
    if not rows:
        return []
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *(row.values() for row in rows)]
    return [f"| {' | '.join(cells)} |" for cells in lines]
