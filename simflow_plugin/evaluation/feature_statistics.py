"""Mean and covariance of features in a file: what a Fréchet distance needs of a reference.

Read: the reference batches of the ADM suite (`mu`, `sigma`, and `mu_s`, `sigma_s` for sFID, in `.npz`), `.npz` files of
pytorch-fid and clean-fid (`mu`, `sigma`), and torch-fidelity's cache (`.pt`). None of these says what its features are,
so they are taken for Inception's. Our own files are the ADM suite's with the extractor, the digest of its weights and
the number of images beside, which are compared.
"""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simflow_plugin.errors import EvaluationError
from simflow_plugin.evaluation.extractors import Extractor, ImageFeatures
from simflow_plugin.evaluation.fidelity import Moments, moments_of
from simflow_plugin.files import replacing

MEAN, COVARIANCE, SPATIAL = "mu", "sigma", "_s"
FACTS = ("extractor", "weights", "num_images")
"""Fields of `FeatureStatistics` that our own files have beside the arrays."""
LARGEST_ASYMMETRY = 1e-3
"""Relative to the largest entry; covariances saved in float32 are symmetric to their last digits only."""


@dataclass(frozen=True)
class FeatureStatistics:
    """Statistics of the features of a set of images.

    Args:
        pooled: of the pooled features.
        spatial: of Inception's spatial ones, for sFID, or None.
        extractor: name, or None where a file does not say.
        weights: digest of the extractor's weights, or None.
        num_images: or None.
    """

    pooled: Moments
    spatial: Moments | None = None
    extractor: str | None = None
    weights: str | None = None
    num_images: int | None = None

    @classmethod
    def of(cls, features: ImageFeatures, extractor: Extractor) -> FeatureStatistics:
        """Compute the statistics of at least two images."""
        if len(features.pooled) < 2:
            raise EvaluationError(f"{len(features.pooled)} image: a covariance takes two at least.")
        spatial = moments_of(features.spatial) if features.spatial is not None else None
        pooled = moments_of(features.pooled)
        return cls(pooled, spatial, extractor.name, extractor.digest, len(features.pooled))

    def check_made_by(self, extractor: Extractor, path: Path) -> None:
        """Refuse statistics of other features.

        Raises:
            EvaluationError: naming both.
        """
        made_by = self.extractor or "inception"
        if made_by != extractor.name:
            unsaid = "" if self.extractor else " (the file names no extractor, as those of other tools)"
            raise EvaluationError(
                f"{path}: statistics of the features of `{made_by}`{unsaid}, but --extractor is `{extractor.name}`. "
                "Use the same, or make a file for it with `simflow statistics`."
            )
        if self.weights not in (None, extractor.digest):
            raise EvaluationError(
                f"{path}: made with weights of digest {self.weights}, but those of `{extractor.name}` here have "
                f"{extractor.digest}. Name the same file with --weights, or make the statistics anew."
            )


def save_statistics(path: Path, statistics: FeatureStatistics) -> None:
    """Write an `.npz` file that `read_statistics`, the ADM suite, pytorch-fid and clean-fid read."""
    arrays: dict[str, Any] = {}
    for suffix, moments in (("", statistics.pooled), (SPATIAL, statistics.spatial)):
        if moments is not None:
            arrays |= {MEAN + suffix: moments.mean, COVARIANCE + suffix: moments.covariance}
    facts = {name: getattr(statistics, name) for name in FACTS}
    arrays |= {name: np.array(value) for name, value in facts.items() if value is not None}
    with replacing(path, EvaluationError) as part, part.open("wb") as file:
        np.savez(file, **arrays)


def read_statistics(path: Path) -> FeatureStatistics | None:
    """Read the statistics in a file; None for a folder, or an `.npz` without any.

    Args:
        path: of a folder, an `.npz` or a `.pt` file. Nothing is unpickled but arrays.
    Raises:
        EvaluationError: if the file cannot be read, or holds no mean and covariance of one size, finite and symmetric.
    """
    if not path.is_file() or path.suffix not in (".npz", ".pt"):
        return None
    try:
        arrays = _read_npz(path) if path.suffix == ".npz" else _read_pt(path)
        if not arrays:
            return None
        spatial = _moments(arrays, SPATIAL, path) if MEAN + SPATIAL in arrays else None
        extractor, weights = (str(arrays[key]) if key in arrays else None for key in ("extractor", "weights"))
        num_images = int(arrays["num_images"]) if "num_images" in arrays else None
        return FeatureStatistics(_moments(arrays, "", path), spatial, extractor, weights, num_images)
    except pickle.UnpicklingError as error:
        raise EvaluationError(
            f"{path}: holds more than arrays, or is torn; Python objects are not loaded."
        ) from error
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, TypeError, RuntimeError) as error:
        raise EvaluationError(f"{path}: cannot be read, perhaps torn: {error}") from error


def _read_npz(path: Path) -> dict[str, Any]:
    """Return everything but the images; nothing without a mean."""
    with np.load(path, allow_pickle=False) as file:
        wanted = {MEAN, COVARIANCE, MEAN + SPATIAL, COVARIANCE + SPATIAL, *FACTS}
        return {key: file[key] for key in wanted & set(file.files)} if MEAN in file.files else {}


def _read_pt(path: Path) -> dict[str, Any]:
    rebuild: Any = np.ndarray.__reduce__(np.zeros(1))[0]
    allowed: list[Any] = [np.ndarray, np.dtype, type(np.dtype(np.float32)), type(np.dtype(np.float64))]
    # NumPy 2 moved this function; a file has the name of the version that wrote it.
    allowed += [(rebuild, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    with torch.serialization.safe_globals(allowed):
        content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or MEAN not in content:
        raise EvaluationError(f"{path}: expected a dictionary with {MEAN} and {COVARIANCE}.")
    return {
        key: value.numpy() if isinstance(value, torch.Tensor) else value for key, value in content.items()
    }


def _moments(arrays: dict[str, Any], suffix: str, path: Path) -> Moments:
    names = (MEAN + suffix, COVARIANCE + suffix)
    if names[1] not in arrays:
        raise EvaluationError(f"{path}: has {names[0]}, but no {names[1]}.")
    mean, covariance = (np.asarray(arrays[name], dtype=np.float64) for name in names)
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise EvaluationError(
            f"{path}: {names[0]} has shape {mean.shape} and {names[1]} {covariance.shape}; expected (F,) and (F, F)."
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise EvaluationError(f"{path}: {names[0]} or {names[1]} is not finite.")
    if np.abs(covariance - covariance.T).max() > LARGEST_ASYMMETRY * np.abs(covariance).max():
        raise EvaluationError(f"{path}: {names[1]} is not symmetric, so it is no covariance.")
    return Moments(mean, covariance)
