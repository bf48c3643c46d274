"""Likelihood of an image among held-out images of a run: fitted and measured once, and kept with an export.

All images are scored without their label, since one that is uploaded has none. The numbers are those of
`run.bits_per_dim(images)`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field, ValidationError
from torch import Tensor

from simflow_plugin.errors import DataError, SimflowError
from simflow_plugin.evaluation.drawing import SEED
from simflow_plugin.evaluation.held_out import HeldOut, fit_control_variate, fit_likelihood, score_images
from simflow_plugin.evaluation.likelihood import ReconstructionLikelihood, Scorer
from simflow_plugin.evaluation.monte_carlo import ControlVariate
from simflow_plugin.evaluation.request import EvaluationRequest
from simflow_plugin.files import read_json_object
from simflow_plugin.options import Options
from simflow_plugin.randomness import IndexedRandom
from simflow_plugin.runs.exported import write_json
from simflow_plugin.runs.loaded_run import LoadedRun
from simflow_plugin.runs.parts import build_dataset

FILE = "likelihood_reference.json"
NUM_HELD_OUT = 256
DRAWS = EvaluationRequest.posterior_samples
Ascending = Annotated[tuple[float, ...], AfterValidator(lambda values: tuple(sorted(values)))]


class LikelihoodReference(Options):
    """Reference that an image is compared with, as `likelihood_reference.json` holds it.

    Args:
        scale: of P(x given z), fitted on training images; pixels in [-1, 1].
        control: coefficients of the control variate, fitted likewise.
        bits_per_dim: of held-out images, ascending.
        held_out: which images these are, in words.
        weights: digest of the weights that it was measured with.
    """

    scale: float = Field(gt=0)
    control: ControlVariate
    bits_per_dim: Ascending = Field(min_length=1)
    held_out: str
    weights: str

    @classmethod
    def measure(cls, loaded: LoadedRun, weights: str) -> LikelihoodReference:
        """Fit on training images, and score held-out ones.

        Raises:
            DataError: if the run's images are not at hand.
            EvaluationError: if the model has no exact density.
        """
        size = loaded.config.sampling.batch_size
        train, test = (build_dataset(loaded.config, split) for split in ("train", "test"))
        likelihood = fit_likelihood(loaded, train, EvaluationRequest.likelihood, size)
        model = loaded.require_model()
        scorer = fit_control_variate(
            loaded, train, Scorer(loaded.autoencoder, model, likelihood, DRAWS), size
        )
        held_out = HeldOut(test, loaded.config.data.name, min(NUM_HELD_OUT, len(test)), size)
        scores, _ = score_images(loaded, held_out, scorer, has_labels=False)
        return cls(
            scale=likelihood.scale,
            control=scorer.control,
            bits_per_dim=tuple(scores.image_bits_per_dim.tolist()),
            held_out=f"{held_out.num_measured:,} held-out images of {held_out.name}",
            weights=weights,
        )

    def bits_of(self, loaded: LoadedRun, images: Tensor) -> list[float]:
        """Return bits per dimension of images (B, 3, H, W) in [-1, 1], without a label."""
        likelihood = ReconstructionLikelihood(EvaluationRequest.likelihood, self.scale)
        scorer = Scorer(loaded.autoencoder, loaded.require_model(), likelihood, DRAWS, self.control)
        random = IndexedRandom(SEED, tuple(range(len(images))))
        with loaded.precision.active():
            return scorer(images.to(loaded.device), None, random).image_bits_per_dim.tolist()

    def share_less_likely(self, bits: float) -> float:
        """Return the share of held-out images with more bits than `bits`, in [0, 1]; equal ones count half."""
        values = np.array(self.bits_per_dim)
        return float(np.mean((values > bits) + 0.5 * (values == bits)))

    def save(self, folder: Path) -> None:
        """Write the reference into the folder of an exported run."""
        write_json(folder / FILE, self.model_dump(mode="json"))

    @classmethod
    def load(cls, folder: Path, weights: str) -> LikelihoodReference | None:
        """Read the reference that lies beside the weights of a digest; None where there is none.

        Raises:
            DataError: if the file is damaged, or was made with other weights.
        """
        if not (folder / FILE).is_file():
            return None
        try:
            saved = cls.model_validate(read_json_object(folder / FILE, DataError))
        except ValidationError as error:
            problem = error.errors()[0]
            raise DataError(
                f"{folder / FILE}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}. Remove the file, or export "
                "the run again."
            ) from error
        if saved.weights != weights:
            raise DataError(
                f"{folder / FILE}: was measured with weights {saved.weights[:12]}, and those beside it are "
                f"{weights[:12]}. Export the run again."
            )
        return saved


def find_reference(loaded: LoadedRun, weights: str) -> tuple[LikelihoodReference | None, str]:
    """Return the reference of a run for weights of this digest, or None and why there is none."""
    try:
        found = LikelihoodReference.load(loaded.directory.path, weights)
        return found or LikelihoodReference.measure(loaded, weights), ""
    except SimflowError as error:
        return None, str(error)
