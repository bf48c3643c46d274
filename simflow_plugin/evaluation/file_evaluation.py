"""Generation metrics of samples that others made, against images or their statistics: `simflow evaluate --samples`."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from simflow_plugin.errors import EvaluationError
from simflow_plugin.evaluation.extractors import Extractor, ImageFeatures
from simflow_plugin.evaluation.feature_statistics import FeatureStatistics, read_statistics
from simflow_plugin.evaluation.fidelity import (
    Moments,
    extract,
    few_samples_warning,
    fidelity,
    frechet_distance,
    inception_score,
    moments_of,
    named_after,
)
from simflow_plugin.evaluation.image_sets import IMAGES_KEY, ImageSet, open_images
from simflow_plugin.evaluation.result import Measured
from simflow_plugin.evaluation.shared_features import SharedFeatures
from simflow_plugin.progress_bar import count_progress

UNKNOWN_NUM_IMAGES = 50_000
"""Of statistics that do not tell: enough to warn of nothing, as a note says that it is not known."""


@dataclass(frozen=True)
class Reference:
    """The reference of samples: images, statistics, or both, as ADM's reference batches have them."""

    path: Path
    images: ImageSet | None
    statistics: FeatureStatistics | None


def open_reference(path: Path) -> Reference:
    """Open a folder of images, an `.npz` of images, of statistics or of both, or torch-fidelity's `.pt` of statistics.

    Raises:
        EvaluationError, DataError: if it is none of these.
    """
    statistics = read_statistics(path)
    if statistics is None:
        return Reference(path, open_images(path, "--reference"), None)
    has_images = path.suffix == ".npz" and _has_images(path)
    return Reference(path, open_images(path, "--reference") if has_images else None, statistics)


def features_of(images: ImageSet, extractor: Extractor, batch_size: int) -> ImageFeatures:
    """Extract the features of a set of images, with progress."""
    with count_progress(f"features of {images.path.name}", images.count) as advance:
        return extract(extractor, images.batches(batch_size), advance)


def shared_features(images: ImageSet, extractor: Extractor, batch_size: int) -> SharedFeatures:
    """Return the features of a set of images as work that several processes share, and that goes on after a stop."""
    facts = {"images": images.files}

    def read(numbers: range) -> Iterator[Tensor]:
        return images.read(numbers, batch_size)

    return SharedFeatures(images.path.name, facts, extractor, read, images.count, keeps=False)


def evaluate_files(
    samples: ImageSet, reference: Reference, extractor: Extractor, batch_size: int, seed: int = 0
) -> tuple[dict[str, Measured], list[str]]:
    """Compare images with a reference; return metrics by name, and notes on them.

    Fréchet distances are to the statistics where the reference has them, which may be of more images than it holds;
    kernel distance, precision and recall need images.

    Args:
        seed: of the subsets of KID and the splits of the Inception score.
    Raises:
        EvaluationError: if the statistics are of other features, or there are fewer than two images.
    """
    statistics = reference.statistics
    if statistics is not None:
        statistics.check_made_by(extractor, reference.path)
    found = features_of(samples, extractor, batch_size)
    _check_size(found, statistics, reference.path)
    metrics: dict[str, Measured] = {}
    if reference.images is not None:
        real = features_of(reference.images, extractor, batch_size)
        metrics |= fidelity(found, real, extractor, seed)
    if statistics is not None:
        metrics |= _to_statistics(found, statistics, extractor, seed)
    on = f"{samples.count:,} images of {samples.path.name} against {reference.path.name}"
    return {name: number.with_notes(on=on) for name, number in metrics.items()}, _notes(reference)


def _to_statistics(
    samples: ImageFeatures, statistics: FeatureStatistics, extractor: Extractor, seed: int
) -> dict[str, Measured]:
    num_real = statistics.num_images or UNKNOWN_NUM_IMAGES
    numbers = {"fid": _distance(samples.pooled, statistics.pooled, num_real)}
    if samples.spatial is not None and statistics.spatial is not None:
        numbers["sfid"] = _distance(samples.spatial, statistics.spatial, num_real)
    if extractor.is_inception:
        score = inception_score(samples, seed)
        numbers["is"] = score.with_notes(
            warning=few_samples_warning("is", len(samples.pooled), len(samples.pooled), 0)
        )
    return named_after(extractor, numbers)


def _distance(features: Tensor, moments: Moments, num_real: int) -> Measured:
    value = frechet_distance(moments_of(features), moments)
    warning = few_samples_warning("fid", len(features), num_real, features.shape[1])
    return Measured(value, warning=warning)


def _check_size(samples: ImageFeatures, statistics: FeatureStatistics | None, path: Path) -> None:
    num_samples, dims = samples.pooled.shape
    if num_samples < 2:
        raise EvaluationError(f"--samples: {num_samples} image; these metrics are defined for two at least.")
    if statistics is not None and len(statistics.pooled.mean) != dims:
        raise EvaluationError(
            f"{path}: statistics of {len(statistics.pooled.mean)} features, but the extractor gives {dims}."
        )


def _notes(reference: Reference) -> list[str]:
    statistics, name = reference.statistics, reference.path.name
    if statistics is None:
        return []
    notes = []
    if statistics.extractor is None:
        notes.append(
            f"{name} names neither extractor nor number of images: taken for Inception's pooled features under "
            "TensorFlow's resizing, as ADM's and pytorch-fid's are. clean-fid resizes otherwise (antialiased bicubic): "
            "a distance to its `clean` statistics is neither FID nor clean-FID."
        )
    if reference.images is not None:
        notes.append(
            f"Fréchet distances are to the statistics in {name}, the other metrics to its "
            f"{reference.images.count:,} images."
        )
    else:
        notes.append(f"{name} holds no images: no kernel distance, precision or recall.")
    return notes


def _has_images(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return f"{IMAGES_KEY}.npy" in archive.namelist()
