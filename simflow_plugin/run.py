"""A trained run in Python: samples, latents, likelihoods and interpolations.

    run = simflow_plugin.load("runs/quickstart")
    images = run.sample(["3", "7"], guidance=0.5, seed=1)  # (2, 3, H, W) in [-1, 1]
    run.decode(run.encode(images))
    run.log_prob(images, ["3", "7"])
    run.log_prob_by_class(images).argmax(1)  # the class under which each image is the most likely

Everything is computed by the functions that `simflow sample` and `simflow evaluate` call: equal samples, equal numbers.
Results lie on the CPU.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from huggingface_hub import ModelHubMixin
from torch import Tensor

from simflow_plugin.contracts import Autoencoder, GenerativeModel
from simflow_plugin.errors import EvaluationError, ShapeError
from simflow_plugin.evaluation.classification import check_classifies, mean_class_log_probs
from simflow_plugin.evaluation.drawing import SEED, ImageSampler, wanted_labels
from simflow_plugin.evaluation.held_out import fit_control_variate, fit_likelihood
from simflow_plugin.evaluation.likelihood import (
    Scorer,
    bits_per_dim,
    latent_log_prob,
    posterior_draws,
)
from simflow_plugin.evaluation.monte_carlo import ENTROPY_REPLACED
from simflow_plugin.evaluation.request import EvaluationRequest, with_sampling
from simflow_plugin.files import check_new_folder
from simflow_plugin.inputs import LabelledBatch, as_images, as_labels, labelled_batches
from simflow_plugin.interpolation import images_between
from simflow_plugin.progress_bar import count_progress
from simflow_plugin.runs.autoguidance import NONE, with_autoguidance
from simflow_plugin.runs.loaded_run import LoadedRun
from simflow_plugin.runs.parts import build_dataset
from simflow_plugin.runs.sources import fetch_from_hub, open_run

if TYPE_CHECKING:
    from simflow_plugin.flow import TransformerFlow
    from simflow_plugin.inputs import Images, Labels

DRAWS = EvaluationRequest.posterior_samples
"""Posterior samples an image that likelihoods are means of."""


class Run(ModelHubMixin):
    """A trained run, frozen, with the methods of a generative model of images.

    By huggingface_hub's mixin it has `save_pretrained(folder)`, `from_pretrained(folder or Hub name)` and
    `push_to_hub("owner/name")`; the folder is that of `simflow export`, which diffusers loads too.

    Images are floats (B, 3, H, W) in [-1, 1], uint8 in [0, 255], or PIL images; see `simflow_plugin.inputs.as_images`.
    Labels are classes by number or name, one for all images or one an image; likelihoods without them are those of the
    unconditional density, and means over `draws` posterior samples an image, drawn by `seed`.

    Args:
        loaded: the run's parts; `simflow_plugin.load` makes it.
        licence: identifier of the Hub (`apache-2.0`, ...) for the model card; None leaves it open.
    """

    def __init__(self, loaded: LoadedRun, licence: str | None = None) -> None:
        self.loaded, self.licence = loaded, licence
        self._by_method: dict[str, LoadedRun] = {}
        self._guided_by_method: dict[str | None, LoadedRun] = {}

    def __repr__(self) -> str:
        loaded, config = self.loaded, self.loaded.config
        name = config.model.name if config.model is not None else "autoencoder alone"
        return (
            f"Run({loaded.directory.path}: {name} on {config.data.name}, {self.image_size} x {self.image_size}, step "
            f"{loaded.checkpoint.step}, {loaded.weights_name} weights, {loaded.device}, {loaded.precision})"
        )

    @property
    def image_size(self) -> int:
        """Pixels of a side."""
        return self.loaded.config.image_size

    @property
    def classes(self) -> list[str] | None:
        """Names of the K classes; None for a run without classes."""
        return self.loaded.known_class_names

    @property
    def autoencoder(self) -> Autoencoder:
        """The autoencoder, in evaluation mode; see `simflow_plugin.contracts.Autoencoder`."""
        return self.loaded.autoencoder

    @property
    def model(self) -> GenerativeModel:
        """The generative model of latents; see `simflow_plugin.contracts.GenerativeModel`.

        Raises:
            EvaluationError: if the run trained an autoencoder alone.
        """
        return self.loaded.require_model()

    @property
    def flow(self) -> TransformerFlow:
        """The flow of tokens; `run.model.tokens(latents)` are its input.

        Raises:
            EvaluationError: if the model is no flow.
        """
        flow = self.model.token_flow()
        if flow is None:
            raise EvaluationError(f"{self.loaded.directory.path}: {type(self.model).__name__} is no flow.")
        return flow

    # ------------------------------------------------------------------ images

    def sample(
        self,
        labels: Labels,
        *,
        seed: int = SEED,
        guidance: float | None = None,
        method: str | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Draw images; those of `simflow sample` with the same seed, bit for bit.

        Args:
            labels: a number N of samples, classes in turn as in `simflow sample`; or a list with the class of each, by
                number or name. One name is one sample.
            seed: of the noise: sample i depends on (seed, i, its class, guidance) only.
            guidance: weight w >= 0; None is the run's own.
            method: of the sampler (`cached`, `jacobi`, ... of a flow; `euler`, `heun`, ... of SiT); None: as trained.
            batch_size: None is the run's own; it changes the samples by no more than rounding.
            progress: show a bar.
        Returns:
            (N, 3, H, W) float32 in [-1, 1].
        Raises:
            EvaluationError: if the run trained an autoencoder alone, or its model has no such method.
            ConfigError: if the model cannot be guided.
            DataError: if there is no such class.
        """
        loaded = self._with_method(method)
        weight = loaded.config.sampling.guidance if guidance is None else guidance
        if weight > 0:
            loaded = self._guided(method)
        sampler = ImageSampler.of_run(loaded, guidance, seed, autoguidance=NONE)
        wanted = wanted_labels(labels, self.classes)
        size = batch_size or loaded.config.sampling.batch_size
        if not progress:
            return self._joined(list(sampler.batches(wanted, size)))
        with count_progress("sampling", len(wanted)) as advance:
            return self._joined(list(sampler.batches(wanted, size, advance)))

    def encode(self, images: Images, *, seed: int | None = None) -> Tensor:
        """Return latents (B, C, h, w), normalised: the posterior mean, or with a `seed` a sample of the posterior."""
        found = []
        for batch in self._batches(images, None, SEED if seed is None else seed):
            latents, _ = self.loaded.encode(batch.images, None if seed is None else batch.random)
            found.append(latents)
        return self._joined(found)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B, 3, H, W) in [-1, 1] of normalised latents (B, C, h, w).

        Raises:
            ShapeError: if there are not C channels.
        """
        found = []
        for rows in latents.split(self.loaded.config.sampling.batch_size):
            with self.loaded.precision.active():
                decoded = self.autoencoder.decode(rows.to(self.loaded.device))
            found.append(decoded.float().clamp(-1, 1).cpu())
        return self._joined(found)

    @torch.no_grad()
    def interpolate(
        self, start: Images, end: Images, num: int = 8, *, labels: Labels | None = None, seed: int = SEED
    ) -> Tensor:
        """Return images on the way from one image to another.

        With a flow the way is an arc between their noises (slerp), along which all points are as likely as samples are;
        otherwise a line between their latents.

        Args:
            num: of images on the way, both ends included.
            labels: a class, or one a pair, for both ways through the flow; None is the unconditional flow.
            seed: of the posterior samples that the images are encoded as.
        Returns:
            (B, num, 3, H, W) in [-1, 1]; the ends are reconstructions.
        Raises:
            ShapeError: if there are not as many images at both ends, or `num` is below 2.
        """
        start, end = as_images(start, self.image_size), as_images(end, self.image_size)
        if len(start) != len(end) or num < 2:
            raise ShapeError(
                f"from {len(start)} images to {len(end)} in {num} steps: expected as many at both ends, and num >= 2"
            )
        starts, ends = self._batches(start, labels, seed), self._batches(end, labels, seed)
        return self._joined(
            [images_between(self.loaded, *pair, num) for pair in zip(starts, ends, strict=True)]
        )

    # ------------------------------------------------------------------ likelihood

    @torch.no_grad()
    def log_prob(
        self, images: Images, labels: Labels | None = None, *, seed: int = SEED, draws: int = DRAWS
    ) -> Tensor:
        """Return E[log p(z given labels)] over z ~ q(z given image), (B,), float64, nats per image.

        It depends on the scale of the latent space. Of a model that adds noise to latents (STARFlow) it is the density
        of noisy ones.

        Raises:
            EvaluationError: if the model has no exact density.
        """
        found = []
        for batch in self._batches(images, labels, seed):
            with self.loaded.precision.active():
                posterior = self.autoencoder.encode(batch.images)
                pairs = posterior_draws(self.model, posterior, batch.random, draws, "likelihood")
                rows = [
                    latent_log_prob(self.model, latents, batch.labels) - ENTROPY_REPLACED.log_prob * control
                    for latents, control in pairs
                ]
            found.append(torch.stack(rows).mean(0))
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)

    def log_prob_by_class(self, images: Images, *, seed: int = SEED, draws: int = DRAWS) -> Tensor:
        """Return E[log p(z given y)] over z ~ q(z given image) for every class y, (B, K), float64, nats per image.

        Its argmax is the classification of `simflow evaluate --classify`.

        Raises:
            EvaluationError: if the model has no exact density, or was trained without labels.
        """
        check_classifies(self.loaded)
        rows_at_once = self.loaded.config.sampling.batch_size
        found = [
            mean_class_log_probs(self.loaded, batch.images, batch.random, draws, rows_at_once)
            for batch in self._batches(images, None, seed)
        ]
        return (
            torch.cat(found) if found else torch.zeros(0, self.loaded.num_classes or 0, dtype=torch.float64)
        )

    def bits_per_dim(
        self,
        images: Images,
        labels: Labels | None = None,
        *,
        of: Literal["image", "latent"] = "image",
        seed: int = SEED,
        draws: int = DRAWS,
    ) -> Tensor:
        """Return bits per dimension, (B,), float64.

        Args:
            images: B images with 8-bit levels.
            of: `image`, an upper bound of -log2 P(image) / (3 H W), as in `simflow evaluate`; it is fitted once on
                training images, which must be at hand. `latent`, -log2 p(z) / (C h w), for runs with one autoencoder.
        Raises:
            EvaluationError: if the model has no exact density.
            DataError: if the training images are not at hand.
        """
        if of == "latent":
            dims = math.prod(self.autoencoder.latent_shape(self.image_size))
            return bits_per_dim(-self.log_prob(images, labels, seed=seed, draws=draws), dims)
        fitted = self._scorer
        scorer = Scorer(fitted.autoencoder, fitted.model, fitted.likelihood, draws, fitted.control)
        found = []
        for batch in self._batches(images, labels, seed):
            with self.loaded.precision.active():
                found.append(scorer(batch.images, batch.labels, batch.random).image_bits_per_dim)
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)

    # ------------------------------------------------------------------ records

    @property
    def metrics(self) -> dict[str, Any]:
        """Numbers that were measured at the end of training (summary.json); empty if nothing was."""
        file = self.loaded.directory.summary_file
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    # ------------------------------------------------------------------ the Hub

    def save_pretrained(self, save_directory: Path | str, **options: Any) -> str | None:
        """Write the run to a new or empty folder, as `simflow export` does; see `ModelHubMixin` for the options.

        Raises:
            RunDirectoryError: if the folder holds something.
            ConfigError: if a part needs a file of this machine to be built.
        """
        check_new_folder(Path(save_directory))  # first: the mixin removes a config.json that is there
        return super().save_pretrained(save_directory, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        from simflow_plugin.hub.folder import export_run

        export_run(self.loaded, save_directory, self.licence)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **options: Any,
    ) -> Run:
        folder: Path | str = model_id
        if not Path(model_id).is_dir():
            folder = fetch_from_hub(
                model_id,
                revision=revision,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                token=token,
                force_download=force_download,
            )
        return load(folder, **options)

    # ------------------------------------------------------------------ helpers

    @cached_property
    def _scorer(self) -> Scorer:
        loaded, size = self.loaded, self.loaded.config.sampling.batch_size
        train = build_dataset(loaded.config, "train")
        likelihood = fit_likelihood(loaded, train, EvaluationRequest.likelihood, size)
        return fit_control_variate(
            loaded, train, Scorer(loaded.autoencoder, self.model, likelihood, DRAWS), size
        )

    def _with_method(self, method: str | None) -> LoadedRun:
        if method is None:
            return self.loaded
        if method not in self._by_method:
            option = f"method {method!r}"
            self._by_method[method] = with_sampling(self.loaded, {"method": method}, option)
        return self._by_method[method]

    def _guided(self, method: str | None) -> LoadedRun:
        """Return the run with the guide that its configuration names, which is loaded once."""
        if method not in self._guided_by_method:
            self._guided_by_method[method] = with_autoguidance(self._with_method(method))
        return self._guided_by_method[method]

    def _batches(self, images: Images, labels: Labels | None, seed: int) -> Iterator[LabelledBatch]:
        size, device = self.loaded.config.sampling.batch_size, self.loaded.device
        checked = as_images(images, self.image_size)
        known = None if labels is None else as_labels(labels, self.classes)
        return labelled_batches(checked, known, size, seed, device)

    def _joined(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts) if parts else torch.zeros(0, 3, self.image_size, self.image_size)


def load(
    name: Path | str,
    *,
    device: torch.device | str | None = None,
    averaged: bool = True,
    step: int | None = None,
    precision: str | None = None,
    ema_length: float | None = None,
) -> Run:
    """Load a trained run, with its averaged (EMA) weights unless others are asked for.

    Args:
        name: a run directory, an exported folder, or `owner/name[@revision]` on the Hub.
        device: default: CUDA if there is one, else CPU.
        averaged: the EMA weights, or the last training weights.
        step: of the checkpoint; default: the newest intact one.
        precision: `auto`, `float32`, `bfloat16` or `float16`; default: that of the run's training.
        ema_length: relative length of the average, of a run that keeps power-function averages; default: its first.
    Raises:
        EvaluationError: if `ema_length` is given and there is no such average.
        ConfigError: if there is no such run, or the device does not compute in that precision.
        CheckpointError: if it has no intact checkpoint, or not that of `step`.
    """
    return Run(open_run(name, device, averaged, step, precision, ema_length))
