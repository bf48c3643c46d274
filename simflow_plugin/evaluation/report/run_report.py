"""Pages of one run: evaluation.html beside an evaluation's numbers, and report.html with its training too.

report.html and summary.json show the evaluation of the run's last step with its own settings. `simflow evaluate` writes
them anew after measuring that, so that they never show another number than the evaluation does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from simflow_plugin.contracts import ImageDataset
from simflow_plugin.data.loader import evaluation_batches
from simflow_plugin.data.summary import NUM_HASHED, DataSummary, describe_classes
from simflow_plugin.errors import EvaluationError
from simflow_plugin.evaluation.drawing import grid_indices, to_uint8
from simflow_plugin.evaluation.evaluator import RunEvaluator
from simflow_plugin.evaluation.held_out import reconstruct
from simflow_plugin.evaluation.report.grids import image_grid, png_bytes, reconstruction_grid, shortened_name
from simflow_plugin.evaluation.report.html import (
    Cell,
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
from simflow_plugin.evaluation.report.interpolations import interpolation_strips, strips_figure
from simflow_plugin.evaluation.report.metric_names import (
    format_draws_error,
    format_value,
    metric_lines,
    metric_name,
    metrics_table,
)
from simflow_plugin.evaluation.report.plots import plot_latents, plot_terms
from simflow_plugin.evaluation.report.real_images import (
    nearest_training_images,
    pixels_of,
    readable_rows,
    rows_by_class,
    rows_in_turn,
)
from simflow_plugin.evaluation.report.run_summary import training_numbers, write_summary
from simflow_plugin.evaluation.request import EvaluationRequest
from simflow_plugin.evaluation.result import Evaluation
from simflow_plugin.evaluation.sample_shards import SampleShards
from simflow_plugin.files import read_json_object, replacing
from simflow_plugin.runs.loaded_run import LoadedRun, load_run
from simflow_plugin.runs.run_directory import RunDirectory
from simflow_plugin.units import duration

PER_CLASS, NUM_REAL, NUM_ROWS = 10, 4, 10
NUM_COMPARED, NUM_NEAREST = 100, 10
NUM_RECONSTRUCTIONS = 20
NUM_STRIPS, STRIP_LENGTH = 10, 9
TILES = ("class_agreement", "diversity_ratio", "psnr", "latent_bits_per_dim")


def evaluate_after_training(run: RunDirectory, device: torch.device | str | None = None) -> Evaluation:
    """Measure a trained run as its configuration says, and write its summary and pages."""
    loaded = load_run(run.path, device)
    request = EvaluationRequest.after_training(loaded.config.evaluation, loaded.model is not None)
    evaluator = RunEvaluator(loaded, request, needs_judge=False)
    evaluator.make_samples()
    evaluation = evaluator.measure()
    write_evaluation_page(evaluator, evaluation)
    numbers = write_run_report(evaluator, evaluation)
    spent = duration(numbers["train_seconds"])
    rates = f"{numbers['steps_per_second']:.3g} steps/s, {numbers['images_per_second']:.4g} images/s"
    print("\n".join([*metric_lines(evaluation.metrics), f"trained for {spent}, {rates}"]), flush=True)
    return evaluation


def write_evaluation_page(evaluator: RunEvaluator, evaluation: Evaluation) -> Path:
    """Write evaluation.html beside the result, and return its path."""
    path = evaluation.folder / "evaluation.html"
    sections = [*_measured(evaluator, evaluation), _configuration(evaluator.loaded)]
    _write(path, f"Evaluation: {evaluator.config.name}", sections, evaluator.loaded)
    return path


def write_run_report(evaluator: RunEvaluator, evaluation: Evaluation) -> dict[str, Any]:
    """Write summary.json and report.html from the run's own evaluation; return the content of summary.json."""
    loaded, config = evaluator.loaded, evaluator.config
    sections = [
        Section("", [Tiles(_tiles(loaded, evaluation))]),
        *_measured(evaluator, evaluation),
        Section("Reconstructions", [_reconstructions(evaluator)]),
        Section("Interpolations", [_interpolations(evaluator)]),
        Section("Training", _curves(loaded)),
        Section("Data", _data(loaded.directory)),
        _configuration(loaded),
    ]
    _write(loaded.directory.report_file, f"Run: {config.name}", sections, loaded)
    return write_summary(loaded, evaluation)


def provenance(evaluation: Evaluation) -> str:
    """Return which weights were evaluated how, in one sentence."""
    settings = evaluation.settings
    weights = {"EMA": "averaged (EMA)", "last": "last training"}[settings["weights"]]
    sampling = ", ".join(
        f"{key} {value.get('name', value) if isinstance(value, dict) else value}"
        for key, value in settings["sampling"].items()
    )
    return (
        f"Step {settings['step']:,}, {weights} weights, guidance {settings['guidance']:g}, noise seed "
        f"{settings['seed']}, computed in {settings['precision']}{', sampler: ' + sampling if sampling else ''}."
    )


def terminal_lines(evaluation: Evaluation) -> list[str]:
    """Return the result as aligned lines."""
    return [provenance(evaluation), *metric_lines(evaluation.metrics), *evaluation.notes]


def _write(path: Path, title: str, sections: list[Section], loaded: LoadedRun) -> None:
    config = loaded.config
    name = config.model.name if config.model is not None else "autoencoder alone"
    subtitle = (
        f"{name} on {config.data.name}, {config.image_size} x {config.image_size} pixels, "
        f"{loaded.checkpoint.step:,} steps of {config.training.batch_size} images, seed {config.seed}; "
        f"{loaded.weights_name} weights, held-out images"
    )
    write_report(path, title, sections, subtitle)


def _data(directory: RunDirectory) -> list[Table]:
    """Return a table of the data, as it was read when training was last started; none if that is not known."""
    if not directory.data_file.exists():
        return []
    summary = DataSummary.from_json(read_json_object(directory.data_file, EvaluationError))
    rows = [
        (name, f"{split.num_images:,}", split.fingerprint or "—", Cell("", summary.describe_labels(split)))
        for name, split in summary.splits.items()
    ]
    caption = f"{summary.name}, {describe_classes(summary.class_names)}"
    note = (
        f"Fingerprint: of content and labels of up to {NUM_HASHED} images of the split, the same rows each time. Equal "
        "fingerprints and counts: the same data, wherever it lies."
    )
    return [Table(("split", "images", "fingerprint", "classes"), rows, caption, (note,))]


def _configuration(loaded: LoadedRun) -> Section:
    text = loaded.config.to_yaml(shortens_paths=True)
    return Section("Configuration", [Collapsible("Resolved configuration", text)])


def _measured(evaluator: RunEvaluator, evaluation: Evaluation) -> list[Section]:
    sections = [Section("Metrics", _metrics(evaluation))]
    if "num_samples" in evaluation.details:
        sections.append(Section("Samples", [_samples(evaluator, evaluation)]))
        sections.append(Section("Nearest training images", [_nearest(evaluator, evaluation)]))
    return sections


def _tiles(loaded: LoadedRun, evaluation: Evaluation) -> list[NumberTile]:
    tiles = []
    for key in TILES:
        if key in evaluation.metrics:
            number = evaluation.metrics[key]
            notes = [number.on.split(", ")[0], format_draws_error(number)]
            if key == "class_agreement" and "judgement" in evaluation.details:
                notes += [f"real images {evaluation.details['judgement']['class_agreement_real']:.1%}"]
            notes.append(metric_name(key).caveat)
            note = "; ".join(filter(None, notes))
            tiles.append(NumberTile(metric_name(key).title, format_value(key, number), note))
    cost = training_numbers(loaded)
    rate = f"{cost['steps_per_second']:.3g} steps, {cost['images_per_second']:.0f} images per second"
    return [*tiles, NumberTile("training", duration(cost["train_seconds"]), rate)]


def _metrics(evaluation: Evaluation) -> list[Part]:
    parts: list[Part] = [Text(provenance(evaluation))]
    if evaluation.metrics:
        parts.append(metrics_table(evaluation.metrics))
    parts += [Text(note, is_warning=note.startswith("not judged")) for note in evaluation.notes]
    if "judgement" in evaluation.details:
        parts.append(_judge_table(evaluation.details["judgement"], evaluation.details.get("class_names")))
    return parts


def _judge_table(judgement: dict[str, Any], class_names: list[str] | None) -> Table:
    agreement, diversity = judgement["agreement_by_class"], judgement["diversity_by_class"]
    classes = sorted(agreement, key=int)
    rows = (
        ("agreement", *(f"{agreement[c]:.0%}" for c in classes)),
        ("diversity ratio", *(f"{diversity.get(c, float('nan')):.2f}" for c in classes)),
    )
    notes = (
        f"The judge is {judgement['judge']}; it gives {judgement['class_agreement_real']:.1%} of the real held-out "
        "images here their own class.",
        "Diversity ratio: mean pairwise pixel distance within a class, samples to real images. "
        "1 is as diverse as the data; guidance that collapses a class shows as a ratio near 0.",
    )
    names = [class_names[int(c)] for c in classes] if class_names is not None else classes
    return Table(("class", *names), rows, "By class", notes)


def _samples(evaluator: RunEvaluator, evaluation: Evaluation) -> Part:
    """Show samples beside real images, in the same rows."""
    loaded = evaluator.loaded
    classes, shards = loaded.num_classes, SampleShards(evaluation.folder, evaluation.details["num_samples"])
    per_class = min(PER_CLASS, shards.num_samples // (classes or 1))
    names: list[str] | None = None
    count = min(NUM_ROWS * PER_CLASS, shards.num_samples)
    columns, indices = min(PER_CLASS, count), list(range(count))
    if classes is not None and per_class > 0:
        by_class = np.array(grid_indices(classes, per_class)).reshape(per_class, -1).T
        known = loaded.class_names or list(map(str, range(classes)))
        names = [shortened_name(name) for name in known[: len(by_class)]]
        columns, indices = per_class, by_class.ravel().tolist()
    try:
        images = shards.images(indices)
    except EvaluationError as error:  # of an earlier evaluation, and removed since
        return Text(f"The samples are not shown: {error}")
    caption = "The first samples, not chosen, beside held-out images."
    if names is not None:
        caption = (
            "A row is a class. The first samples of each, not chosen, beside held-out images of the class."
        )
    grid = _beside_real_images(evaluator.test, np.asarray(images), columns, names)
    return Figure(png_bytes(grid), caption, "pixels")


def _beside_real_images(
    test: ImageDataset, samples: NDArray[np.uint8], columns: int, names: list[str] | None
) -> Image.Image:
    num_rows = len(samples) // columns
    if names is not None:
        rows = rows_by_class(test, range(num_rows), NUM_REAL)
    else:
        drawn = readable_rows(test, num_rows * NUM_REAL)
        rows = [drawn[row::num_rows] for row in range(num_rows)]
    num_real = min(map(len, rows), default=0)
    if num_real == 0:  # an unlabelled test split, or a class without a test image
        return image_grid(samples, columns, names)
    whole = samples[: num_rows * columns].reshape(num_rows, columns, *samples.shape[1:])
    real = np.stack([pixels_of(test, of_row[:num_real]) for of_row in rows])
    pixels = np.concatenate((whole, real), axis=1).reshape(-1, *samples.shape[1:])
    groups = {"samples": columns, "real": num_real}
    return image_grid(pixels, columns + num_real, names, groups=groups)


def _nearest(evaluator: RunEvaluator, evaluation: Evaluation) -> Part:
    """Show the samples that come nearest to a training image, against how near held-out images come."""
    shards = SampleShards(evaluation.folder, evaluation.details["num_samples"])
    try:
        samples = np.asarray(shards.images(range(min(NUM_COMPARED, shards.num_samples))))
        held_out = pixels_of(evaluator.test, readable_rows(evaluator.test, NUM_COMPARED))
        found = nearest_training_images(samples, evaluator.train)
        usual = nearest_training_images(held_out, evaluator.train)
    except EvaluationError as error:  # of an earlier evaluation, and removed since
        return Text(f"Not compared with training images: {error}")
    if found is None or usual is None:
        return Text("Not compared with training images: none of them can be read.")
    order = np.argsort(found.distances, kind="stable")[:NUM_NEAREST]
    rows = np.concatenate((samples[order], found.images[order]))
    labels = [f"{distance:.1f}" for distance in found.distances[order]]
    picture = image_grid(rows, len(order), ["sample", "training"], labels)
    caption = (
        f"Of {len(samples)} samples those nearest to one of {found.num_compared:,} training images, and that image; "
        "above, the root mean square difference of pixels, in levels of 255. Median over samples "
        f"{np.median(found.distances):.1f}, over {len(held_out)} held-out images {np.median(usual.distances):.1f}: "
        "samples much nearer than held-out images are copies, learned by heart."
    )
    return Figure(png_bytes(picture), caption, "pixels")


def _reconstructions(evaluator: RunEvaluator) -> Figure:
    """Show held-out images of all classes in turn above their reconstructions."""
    count = min(NUM_RECONSTRUCTIONS, len(evaluator.test))
    classes = evaluator.loaded.num_classes
    rows = rows_in_turn(evaluator.test, classes, count)
    (batch,) = evaluation_batches(evaluator.test, len(rows), rows, set())
    decoded = reconstruct(evaluator.loaded, batch.images.to(evaluator.loaded.device))
    originals, reconstructions = (to_uint8(images).cpu().numpy() for images in (batch.images, decoded))
    caption = "Held-out images, the classes in turn, above their reconstructions from the posterior mean."
    png = png_bytes(reconstruction_grid(originals, reconstructions))
    with replacing(evaluator.loaded.directory.reconstructions_file) as part:
        part.write_bytes(png)
    return Figure(png, caption, "pixels")


def _interpolations(evaluator: RunEvaluator) -> Part:
    return strips_figure(*interpolation_strips(evaluator.loaded, evaluator.test, NUM_STRIPS, STRIP_LENGTH))


def _curves(loaded: LoadedRun) -> list[Part]:
    rows = loaded.directory.read_metrics()
    caption = "Means over the steps between two log lines; reconstruction terms with their weights."
    plots = plot_terms({loaded.config.name: rows}, caption=caption)
    if plots is None:
        return [Text("The run logged no losses.")]
    healthy = (
        "The spread is that of the posterior's mean over data and positions, averaged over channels. A healthy run's "
        "spread over σ rises and levels off; its NLL stays above the floor and falls once the spread has levelled off."
    )
    skipped = loaded.checkpoint.state["skipped_steps"]
    text = f"{skipped} steps were skipped because a loss or gradient was not finite."
    skips = Text(text, is_warning=True) if skipped else None
    return [part for part in (plots, plot_latents(rows, healthy), skips) if part is not None]
