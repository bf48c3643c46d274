"""Content of the page: pictures and texts for what a visitor asked, without a line of its layout."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor

from simflow_plugin.app.likelihood_reference import LikelihoodReference, find_reference
from simflow_plugin.errors import DataError
from simflow_plugin.evaluation.classification import check_classifies
from simflow_plugin.evaluation.drawing import to_uint8
from simflow_plugin.evaluation.held_out import reconstruct
from simflow_plugin.evaluation.report.grids import image_grid
from simflow_plugin.evaluation.request import has_density
from simflow_plugin.inputs import as_images
from simflow_plugin.run import Run
from simflow_plugin.runs.loaded_run import LoadedRun

MOST_SAMPLES = 64
ALL_CLASSES = "all classes"
COLUMNS = 8
STEPS = 9
"""Pictures of an interpolation, both ends included."""
SMALLEST_PICTURE = 480
"""Pixels that a picture is at least about as wide as."""
DIGEST_SHOWN = 12


@dataclass(frozen=True)
class Examined:
    """About one image: itself as the model sees it beside its reconstruction, words on its likelihood, class shares.

    Args:
        classes: name -> p(class given image) with equal shares of the classes before; None without classes.
    """

    picture: Image.Image
    likelihood: str
    classes: dict[str, float] | None


class Answers:
    """Answers of one run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.digest = weights_digest(run.loaded)

    @property
    def has_model(self) -> bool:
        """Whether there are samples to draw; a run may have trained an autoencoder alone."""
        return self.run.loaded.model is not None

    @property
    def can_guide(self) -> bool:
        """Whether a guidance weight has an effect."""
        has_guide = self.run.loaded.config.sampling.autoguidance is not None
        return self.has_model and (self._is_trained_without_labels or has_guide)

    @property
    def _is_trained_without_labels(self) -> bool:
        """Whether labels were dropped in training, so that there is an unconditional half."""
        return self.run.model.supports_guidance

    @property
    def class_choices(self) -> list[str]:
        """Names to choose from; empty for a run without classes."""
        names = self.run.classes
        return [] if names is None else [ALL_CLASSES, *names]

    @property
    def title(self) -> str:
        """Run and weights of these answers, in Markdown."""
        loaded, config = self.run.loaded, self.run.loaded.config
        model = config.model.name if config.model is not None else "autoencoder alone"
        return (
            f"**{config.name}**: `{model}` on `{config.data.name}`, {config.image_size} x {config.image_size} pixels; "
            f"step {loaded.checkpoint.step:,}, {loaded.weights_name} weights, SHA-256 `{self.digest[:DIGEST_SHOWN]}`, "
            f"computed in {loaded.precision} on {loaded.device.type}."
        )

    @cached_property
    def reference(self) -> tuple[LikelihoodReference | None, str]:
        """Held-out images to compare with, measured when first asked for; or None and why there are none."""
        return find_reference(self.run.loaded, self.digest)

    def samples(self, class_name: str | None, guidance: float, seed: int, num: int) -> Image.Image:
        """Return a grid of `num` samples of a class, or of all in turn: those of `simflow sample` with this seed.

        Raises:
            DataError: if there are too many samples, or there is no such class.
            ConfigError: if the model cannot be guided.
        """
        if not 1 <= num <= MOST_SAMPLES:
            raise DataError(f"{num} samples: expected 1 to {MOST_SAMPLES}")
        names = self.run.classes
        wanted = num if names is None or class_name in (None, ALL_CLASSES) else [class_name] * num
        images = self.run.sample(wanted, guidance=guidance if self.can_guide else None, seed=seed)  # type: ignore[arg-type]
        return _tiles(images, min(COLUMNS, num))

    def examine(self, image: Image.Image) -> Examined:
        """Return reconstruction, likelihood and classes of an image, cropped and scaled as training images are."""
        images = as_images(image, self.run.image_size)
        decoded = reconstruct(self.run.loaded, images.to(self.run.loaded.device)).cpu()
        picture = _tiles(torch.cat([images, decoded]), 2)
        if not has_density(self.run.loaded):
            return Examined(picture, "This model has no exact density: no likelihood, no classes.", None)
        return Examined(picture, self._likelihood(images), self._classes(images))

    def interpolation(
        self, start: Image.Image, end: Image.Image, class_name: str | None = None
    ) -> Image.Image:
        """Return a strip from one image to another; see `Run.interpolate`."""
        labels = None if class_name in (None, ALL_CLASSES) else class_name
        return _tiles(self.run.interpolate(start, end, STEPS, labels=labels)[0], STEPS)

    def _likelihood(self, images: Tensor) -> str:
        reference, problem = self.reference
        if reference is None:
            bits = float(self.run.bits_per_dim(images, of="latent")[0])
            return (
                f"{bits:.3f} bits per dimension of the latent, unconditional.\n\nBits of the image itself, and its "
                f"place among held-out images, need the run's data: {problem}"
            )
        (bits,) = reference.bits_of(self.run.loaded, images)
        share = reference.share_less_likely(bits)
        text = (
            f"**{bits:.3f} bits per dimension** (upper bound, unconditional): more likely than {share:.0%} of "
            f"{reference.held_out}, which have {reference.bits_per_dim[0]:.3f} to {reference.bits_per_dim[-1]:.3f}."
        )
        if self.run.classes is not None and not self._is_trained_without_labels:
            text += "\n\nTrained without label dropout: its unconditional density was never trained."
        return text

    def _classes(self, images: Tensor) -> dict[str, float] | None:
        names = self.run.classes
        if names is None or len(names) < 2:
            return None
        check_classifies(self.run.loaded)
        log_probs = self.run.log_prob_by_class(images)[0]
        return dict(zip(names, log_probs.softmax(0).tolist(), strict=True))


def weights_digest(loaded: LoadedRun) -> str:
    """Return the SHA-256 over names, types, shapes and values of all weights that were loaded.

    An exported run has the digest of its run, unless that has weights that an export leaves out (an alignment head).
    """
    digest = hashlib.sha256()
    for prefix, module in (("autoencoder", loaded.autoencoder), ("model", loaded.model)):
        for name, tensor in sorted(module.state_dict().items()) if module is not None else ():
            digest.update(f"{prefix}.{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tiles(images: Tensor, columns: int) -> Image.Image:
    """Return a grid, enlarged by a whole factor where it is small."""
    grid = image_grid(to_uint8(images).numpy(), columns)
    factor = max(1, SMALLEST_PICTURE // grid.width)
    return grid.resize((grid.width * factor, grid.height * factor), Image.Resampling.NEAREST)
