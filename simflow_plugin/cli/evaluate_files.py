"""`simflow evaluate --samples ... --reference ...`: images that others made, without a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from simflow_plugin.cli.evaluate_options import OutputOptions, SampleOptions

FILE_OPTIONS = {
    "samples",
    "reference",
    "extractor",
    "weights",
    "seed",
    "batch_size",
    "json_file",
    "overwrite",
}
"""Parameters of `simflow evaluate` that have an effect with --samples."""
BATCH_SIZE = 64


def check_options(context: typer.Context, run: Path | None, samples: Path | None) -> None:
    """Refuse options without effect, by what the user wrote.

    Raises:
        ConfigError: naming the option and what to do.
    """
    from simflow_plugin.errors import ConfigError

    if (run is None) == (samples is None):
        raise ConfigError(
            "evaluate: name a run directory, or images with --samples and what to compare them with by --reference; "
            f"found {'neither' if run is None else 'both'}."
        )
    written = {name for name in context.params if _is_written(context, name)} - {"run"}
    without_effect = written - FILE_OPTIONS if samples is not None else written & {"json_file", "overwrite"}
    if without_effect:
        options = ", ".join(
            f"--{name.removesuffix('_').replace('_file', '').replace('_', '-')}"
            for name in sorted(without_effect)
        )
        place = "with --samples" if samples is not None else "with a run, whose result.json has its numbers"
        raise ConfigError(f"{options}: has no effect {place}. Remove it.")
    if samples is not None and "reference" not in written:
        raise ConfigError(
            "--samples: needs --reference, a folder of images, an .npz of images, or statistics (.npz, .pt)."
        )


def evaluate_samples(
    samples: Path, drawn: SampleOptions, batch_size: int | None, outputs: OutputOptions
) -> None:
    """Measure, print, and write the numbers to a file if one is named."""
    import torch

    from simflow_plugin.errors import ConfigError
    from simflow_plugin.evaluation.extractors import build_extractor
    from simflow_plugin.evaluation.file_evaluation import evaluate_files, open_reference
    from simflow_plugin.evaluation.image_sets import open_images
    from simflow_plugin.evaluation.report.metric_names import metric_lines
    from simflow_plugin.evaluation.sample_files import check_not_there
    from simflow_plugin.files import replacing

    extractor, reference, json_file = drawn.extractor, Path(drawn.reference), outputs.json_file
    if json_file is not None:
        check_not_there(json_file, outputs.overwrite, "--json")
    if extractor == "none":
        raise ConfigError("--extractor none: leaves nothing to measure with --samples. Name another.")
    found, against = open_images(samples, "--samples"), open_reference(reference)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = build_extractor(extractor, drawn.weights, device)
    metrics, notes = evaluate_files(found, against, loaded, batch_size or BATCH_SIZE, drawn.seed)
    typer.echo(f"{found.count:,} images of {samples} against {reference}, features of {extractor}")
    for line in [*metric_lines(metrics), *notes]:
        typer.echo(line)
    if json_file is not None:
        document = {
            "settings": {
                "samples": str(samples),
                "reference": str(reference),
                "extractor": extractor,
                "seed": drawn.seed,
                "num_samples": found.count,
                "weights": loaded.digest,
            },
            "metrics": {name: number.to_json() for name, number in metrics.items()},
            "notes": notes,
        }
        with replacing(json_file, ConfigError) as part:
            part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        typer.echo(f"{json_file}")


def _is_written(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
