"""summary.json: the key numbers of a run as one flat mapping, those of its evaluation and the cost of its training."""

from __future__ import annotations

import json
import math
from typing import Any

from simflow_plugin.evaluation.result import Evaluation
from simflow_plugin.files import write_text_atomically
from simflow_plugin.runs.loaded_run import LoadedRun


def summary_numbers(loaded: LoadedRun, evaluation: Evaluation) -> dict[str, Any]:
    """Return the content of summary.json.

    `bits_per_dim` is of the latent, so it compares runs with the same autoencoder only; it is also there under the name
    that evaluations have for it.
    """
    settings, details = evaluation.settings, evaluation.details
    numbers: dict[str, Any] = {
        "step": settings["step"],
        "weights": settings["weights"],
        "split": "test",
        "precision": settings["precision"],
        "guidance": settings["guidance"],
        **{key: details[key] for key in ("num_samples", "num_held_out") if key in details},
        **{name: number.value for name, number in evaluation.metrics.items()},
    }
    if "judgement" in details:
        numbers["class_agreement_real"] = details["judgement"]["class_agreement_real"]
    if "latent_bits_per_dim" in numbers:
        noise_std = 0.0 if loaded.model is None else loaded.model.noise_std
        numbers |= {
            "bits_per_dim": numbers["latent_bits_per_dim"],
            "bits_per_dim_error": evaluation.metrics["latent_bits_per_dim"].draws_error,
            "bits_per_dim_of": f"latent plus noise of std {noise_std:g}" if noise_std else "latent",
            "latent_dims": math.prod(loaded.autoencoder.latent_shape(loaded.config.image_size)),
        }
    measured_on = {name: number.on for name, number in evaluation.metrics.items()}
    return {**numbers, **training_numbers(loaded), "measured_on": measured_on, "notes": evaluation.notes}


def training_numbers(loaded: LoadedRun) -> dict[str, Any]:
    """Return what training cost, by the run's own log; the rate is over all of the run, sample grids included."""
    seconds = float(loaded.checkpoint.state["seconds"])
    images = loaded.checkpoint.step * loaded.config.training.batch_size
    parts = {"autoencoder": loaded.autoencoder, "model": loaded.model}
    parameters = {n: sum(p.numel() for p in m.parameters()) for n, m in parts.items() if m is not None}
    return {
        "train_seconds": round(seconds, 1),
        "images_per_second": round(images / max(seconds, 1e-9), 1),
        "steps_per_second": round(loaded.checkpoint.step / max(seconds, 1e-9), 3),
        "parameters": parameters,
        "skipped_steps": loaded.checkpoint.state["skipped_steps"],
    }


def write_summary(loaded: LoadedRun, evaluation: Evaluation) -> dict[str, Any]:
    """Write summary.json, and return its content."""
    numbers = summary_numbers(loaded, evaluation)
    write_text_atomically(loaded.directory.summary_file, json.dumps(numbers, indent=2) + "\n")
    return numbers
