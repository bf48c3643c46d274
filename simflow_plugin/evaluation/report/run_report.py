"""The one-page report of a run: key numbers, samples, reconstructions, curves, configuration."""

from __future__ import annotations

import torch
from torch import Tensor

from simflow_plugin.config.schema import RunConfig
from simflow_plugin.evaluation.report.grids import class_rows, image_grid, png_bytes, reconstruction_grid
from simflow_plugin.evaluation.report.html import (
    Collapsible,
    Figure,
    NumberTile,
    Part,
    Section,
    Table,
    Text,
    Tiles,
    write_report,
)
from simflow_plugin.evaluation.report.plots import plot_terms
from simflow_plugin.evaluation.report.summary import RunMeasurement, measure_run, write_summary
from simflow_plugin.runs.loaded_run import LoadedRun, load_run
from simflow_plugin.runs.parts import build_dataset
from simflow_plugin.runs.run_directory import RunDirectory

PER_CLASS = 12


def summarize_and_report(run: RunDirectory, device: torch.device | str | None = None) -> RunMeasurement:
    """Measure a trained run, and write its summary.json and report.html."""
    loaded = load_run(run.path, device)
    measurement = measure_run(loaded)
    write_summary(loaded, measurement)
    write_run_report(loaded, measurement)
    print(_one_line(measurement), flush=True)
    return measurement


def write_run_report(loaded: LoadedRun, measurement: RunMeasurement) -> None:
    """Write report.html from a measurement."""
    config = loaded.config
    sections = [
        Section("", (Tiles(tuple(_tiles(measurement))), *_judge_table(measurement))),
        Section("Samples", tuple(_samples(loaded, measurement))),
        Section("Reconstructions", tuple(_reconstructions(measurement))),
        Section("Training", tuple(_curves(loaded))),
        Section("Configuration", (Collapsible("Resolved configuration", config.to_yaml()),)),
    ]
    name = config.model.name if config.model is not None else "autoencoder alone"
    subtitle = (
        f"{name} on {config.data.name}, {config.image_size} x {config.image_size} pixels, "
        f"{loaded.checkpoint.step} steps of {config.training.batch_size} images, seed {config.seed}; "
        f"{measurement.numbers['weights']} weights, held-out images"
    )
    shown = [section for section in sections if section.parts]
    write_report(loaded.directory.report_file, f"Run: {config.name}", shown, subtitle)


def _tiles(measurement: RunMeasurement) -> list[NumberTile]:
    n = measurement.numbers
    tiles = []
    if "class_agreement" in n:
        note = f"{n['num_samples']} samples, guidance {n['guidance']:g}; real held-out {n['class_agreement_real']:.1%}"
        tiles.append(NumberTile("class agreement", f"{n['class_agreement']:.1%}", note))
        tiles.append(
            NumberTile("diversity ratio", f"{n['diversity_ratio']:.2f}", "samples to real, within a class")
        )
    if "psnr" in n:
        tiles.append(
            NumberTile("PSNR", f"{n['psnr']:.2f} dB", f"{n['num_held_out']} held-out images, posterior mean")
        )
    if "bits_per_dim" in n:
        tiles.append(
            NumberTile(
                "bits per dim",
                f"{n['bits_per_dim']:.3f}",
                f"of the {n['bits_per_dim_of']}, {n['latent_dims']} dims; Monte-Carlo error "
                f"{n['bits_per_dim_error']:.2g}",
            )
        )
    tiles.append(
        NumberTile(
            "training", f"{n['train_seconds']:.0f} s", f"{n['images_per_second']:.0f} images per second"
        )
    )
    return tiles


def _judge_table(measurement: RunMeasurement) -> list[Part]:
    judgement = measurement.judgement
    if "judge_error" in measurement.numbers:
        return [Text(f"The judge could not judge: {measurement.numbers['judge_error']}", is_warning=True)]
    if judgement is None:
        return []
    classes = sorted(judgement.agreement_by_class)
    rows = (
        ("agreement", *(f"{judgement.agreement_by_class[c]:.0%}" for c in classes)),
        ("diversity ratio", *(f"{judgement.diversity_by_class.get(c, float('nan')):.2f}" for c in classes)),
    )
    notes = (
        f"The judge is {judgement.judge}; it gives {judgement.class_agreement_real:.1%} of the real held-out images "
        "here their own class.",
        "Diversity ratio: mean pairwise pixel distance within a class, samples to real images. "
        "1 is as diverse as the data; guidance that collapses a class shows as a ratio near 0.",
    )
    return [Table(("class", *map(str, classes)), rows, "By class", notes)]


def _samples(loaded: LoadedRun, measurement: RunMeasurement) -> list[Part]:
    if measurement.samples is None or measurement.labels is None:
        return []
    guidance = measurement.numbers["guidance"]
    per_class = min(PER_CLASS, len(measurement.samples) // (loaded.num_classes or 1))
    if loaded.num_classes is None or per_class == 0:
        picture = image_grid(_array(measurement.samples[: 10 * PER_CLASS]), PER_CLASS)
        caption = "Samples 0, 1, 2, ...: the first ones, not chosen."
    else:
        labels = measurement.labels.numpy()
        grid = class_rows(_array(measurement.samples), labels, per_class)
        num_rows = len(grid) // per_class
        picture = image_grid(grid, per_class, _class_names(loaded.config, num_rows))
        caption = f"A row is a class, guidance {guidance:g}. The first samples of each class, not chosen."
    return [Figure(png_bytes(picture), caption, "pixels")]


def _class_names(config: RunConfig, count: int) -> list[str]:
    names = build_dataset(config, "test").class_names or [str(label) for label in range(count)]
    return list(names[:count])


def _reconstructions(measurement: RunMeasurement) -> list[Part]:
    if measurement.originals is None or measurement.reconstructions is None:
        return []
    picture = reconstruction_grid(_array(measurement.originals), _array(measurement.reconstructions))
    return [
        Figure(
            png_bytes(picture),
            "Held-out images above, their reconstructions from the posterior mean below.",
            "pixels",
        )
    ]


def _curves(loaded: LoadedRun) -> list[Part]:
    plot = plot_terms({loaded.config.name: loaded.directory.read_metrics()})
    if plot is None:
        return [Text("The run logged no losses.")]
    parts: list[Part] = [
        Figure(plot, "Means over the steps between two log lines; reconstruction terms with their weights.")
    ]
    skipped = loaded.checkpoint.state["skipped_steps"]
    if skipped:
        parts.append(
            Text(f"{skipped} steps were skipped because a loss or gradient was not finite.", is_warning=True)
        )
    return parts


def _array(images: Tensor):  # type: ignore[no-untyped-def]
    return images.cpu().numpy()


def _one_line(measurement: RunMeasurement) -> str:
    keys = (
        "class_agreement",
        "class_agreement_real",
        "diversity_ratio",
        "psnr",
        "bits_per_dim",
        "train_seconds",
    )
    shown = [f"{key} {measurement.numbers[key]:.4g}" for key in keys if key in measurement.numbers]
    return "  ".join(shown)
