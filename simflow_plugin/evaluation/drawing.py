"""Images drawn from a model by index: the same image alone, in any batch and on any process.

Sample i has label i modulo the number of classes and the noise of (seed, i). Training grids, sample files, evaluations,
reports and comparisons all draw through this file, with seed 0 unless another is named, whatever seed the run trained
with: sample 7 of two runs comes from one noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from simflow_plugin.contracts import NO_LABEL, Autoencoder, GenerativeModel
from simflow_plugin.errors import ConfigError, DataError, EvaluationError
from simflow_plugin.inputs import as_labels
from simflow_plugin.randomness import IndexedRandom
from simflow_plugin.runs.autoguidance import NONE, with_autoguidance
from simflow_plugin.runs.loaded_run import LoadedRun
from simflow_plugin.runs.run_precision import Precision

if TYPE_CHECKING:
    from simflow_plugin.inputs import Labels

SEED = 0
"""Seed of the noise where none is named."""


@dataclass(frozen=True)
class ImageSampler:
    """A model with the decoder and the settings that its images are drawn with.

    Args:
        autoencoder: in eval mode.
        model: likewise, on the same device.
        image_size: pixels.
        precision: to compute in.
        guidance: weight w >= 0.
        seed: of the noise.
    """

    autoencoder: Autoencoder
    model: GenerativeModel
    image_size: int
    precision: Precision
    guidance: float = 0.0
    seed: int = SEED

    @classmethod
    def of_run(
        cls,
        loaded: LoadedRun,
        guidance: float | None = None,
        seed: int = SEED,
        autoguidance: str | None = None,
    ) -> ImageSampler:
        """Return the sampler of a run.

        Args:
            guidance: weight w >= 0; None is the run's own.
            autoguidance: `RUN[@step]` to guide by, or `none`; None is the run's own.
        Raises:
            EvaluationError: if the run trained an autoencoder alone, or the guide has other latents.
            ConfigError, CheckpointError: if its model cannot be guided so, or there is no such guide.
        """
        weight = loaded.config.sampling.guidance if guidance is None else guidance
        if weight > 0:
            loaded = with_autoguidance(loaded, autoguidance)
        elif autoguidance not in (None, NONE):
            raise ConfigError(
                f"--autoguidance {autoguidance}: has no effect with guidance 0. Set --guidance, or leave it out."
            )
        weight, size = loaded.checked_guidance(guidance), loaded.config.image_size
        return cls(loaded.autoencoder, loaded.require_model(), size, loaded.precision, weight, seed)

    @torch.no_grad()
    def draw(self, indices: Sequence[int], labels: Tensor) -> Tensor:
        """Draw the samples with the given indices in one batch.

        Args:
            indices: of the samples; sample i depends on (seed, i, its label, guidance) only.
            labels: (len(indices),) int64, `NO_LABEL` without classes.
        Returns:
            (len(indices), 3, H, W) float32 in [-1, 1], on the CPU.
        Raises:
            EvaluationError: if a sample is not finite, naming its index.
        """
        device = next(self.autoencoder.parameters()).device
        shape = (len(indices), *self.autoencoder.latent_shape(self.image_size))
        known = labels.to(device) if bool((labels != NO_LABEL).any()) else None
        with self.precision.active():
            random = IndexedRandom(self.seed, tuple(indices))
            latents = self.model.sample(known, shape, self.guidance, random)
            images = self.autoencoder.decode(latents).float().cpu()
        broken = not_finite_rows(images) or not_finite_rows(latents)
        if broken:
            raise EvaluationError(
                f"{len(broken)} of {len(indices)} samples are not finite (NaN or infinite), the first is sample "
                f"{indices[broken[0]]}: neither written nor scored. Has training diverged, or is the guidance weight "
                f"{self.guidance:g} too large, or the precision {self.precision} too low? Take an earlier checkpoint "
                "(--step), or change these."
            )
        return images.clamp(-1, 1)

    def batches(
        self, labels: Tensor, batch_size: int, advance: Callable[[int], None] = lambda count: None
    ) -> Iterator[Tensor]:
        """Draw samples 0 .. len(labels) - 1, a batch at a time; `advance` is told how many each batch added.

        Yields:
            (B, 3, H, W) float32 in [-1, 1], on the CPU.
        """
        for rows in torch.arange(len(labels)).split(batch_size):
            yield self.draw(rows.tolist(), labels[rows])
            advance(len(rows))


def class_labels(indices: Sequence[int], num_classes: int | None) -> Tensor:
    """Return the labels (len(indices),) of samples: classes in turn, i modulo K; `NO_LABEL` without classes."""
    return torch.tensor([i % num_classes if num_classes else NO_LABEL for i in indices], dtype=torch.int64)


def wanted_labels(wanted: Labels, names: Sequence[str] | None) -> Tensor:
    """Return the labels (N,) of samples.

    Args:
        wanted: a number N of samples, classes in turn; or a list with the class of each, by number or name.
        names: of the K classes; None for a run without classes.
    Raises:
        DataError: if there is no such class.
    """
    if not isinstance(wanted, (int, np.integer)):
        return as_labels(wanted, names)
    if wanted < 1:
        raise DataError(f"{wanted} samples: expected a number >= 1, or a list of classes")
    return class_labels(range(int(wanted)), None if names is None else len(names))


def labels_in_turn(num: int, classes: Sequence[int]) -> Tensor:
    """Return the labels (num,) of samples of some classes in turn; `NO_LABEL` where there are none."""
    return torch.tensor([classes[i % len(classes)] if classes else NO_LABEL for i in range(num)])


def grid_indices(num_classes: int | None, per_class: int, max_classes: int = 10) -> list[int]:
    """Return the indices of the first samples of the first classes: one of each class, then the next of each."""
    columns = min(num_classes or max_classes, max_classes)
    return [c + n * (num_classes or columns) for n in range(per_class) for c in range(columns)]


def not_finite_rows(tensor: Tensor) -> list[int]:
    """Return the rows of a batch that hold NaN or infinity; waits for the device once, whatever is found."""
    is_broken = ~tensor.isfinite().flatten(1).all(1)
    return [row for row, broken in enumerate(is_broken.tolist()) if broken]


def to_uint8(images: Tensor) -> Tensor:
    """Turn images (B, 3, H, W) in [-1, 1] into uint8 (B, H, W, 3) in [0, 255].

    Raises:
        EvaluationError: if they are not finite: NaN would become black pixels.
    """
    broken = not_finite_rows(images)
    if broken:
        raise EvaluationError(
            f"{len(broken)} of {len(images)} images are not finite (NaN or infinite): neither written nor scored. "
            "Has training diverged? Take an earlier checkpoint (--step), or a higher precision."
        )
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


def to_pil(images: Tensor) -> list[Image.Image]:
    """Turn images (B, 3, H, W) in [-1, 1] into PIL images; values outside are clipped."""
    return [Image.fromarray(pixels) for pixels in to_uint8(images.detach().float()).cpu().numpy()]
