"""The configuration of a second stage: encoder and flow of a run frozen, its decoder trained on.

    L = L_pixel(decode(z), x) + L_perceptual(decode(z), x) + L_adversarial(decode(z)),  z ~ q(z given x)

The decoder sees draws of the posterior, as in the joint training, and with a fixed variance these are what the flow has
learned to generate. Latents sampled from the flow have no image to compare the decoded one with, and are not trained
on; they are what the result is measured by. Latents and likelihood stay those of the parent.

Reference: MIMFlow, arXiv:2606.26016 (the decoder alone with an adversarial weight of 0.05: gFID 10.14 -> 6.15).
"""

from __future__ import annotations

from typing import Any

from simflow_plugin.derived_runs.parent import ParentFiles
from simflow_plugin.errors import ShapeError
from simflow_plugin.files import file_digest
from simflow_plugin.losses.discriminator import check_image_size

STEPS_RATIO = 0.1
"""Share of the parent's steps; MIMFlow gives its decoder 2 of 90 epochs."""
ADVERSARIAL_WEIGHT = 0.05
MOST_LAYERS = 3


def decoder_values(files: ParentFiles) -> dict[str, Any]:
    """Return the values of the configuration that trains the parent's decoder on, for `derived_config`."""
    config = files.loaded.config.model_dump(mode="json")
    steps = max(1, round(STEPS_RATIO * config["training"]["steps"]))
    warmup = min(round(STEPS_RATIO * config["optimizer"]["warmup_steps"]), steps)
    given = config["objective"]["adversarial"] or {
        "weight": ADVERSARIAL_WEIGHT,
        "num_layers": _num_layers(config["image_size"]),
    }
    return {
        "name": f"{config['name']}-decoder",
        "seed": config["seed"],
        "image_size": config["image_size"],
        "data": config["data"],
        "autoencoder": {**files.autoencoder, "trainable": "decoder"},
        "model": config["model"],
        "frozen_model": {
            "weights": str(files.model.resolve()),
            "sha256": file_digest(files.model),
            "source": files.source,
            "run_id": files.loaded.checkpoint.state.get("run_id"),
        },
        "objective": {**config["objective"], "adversarial": {**given, "start_step": 0}},
        "optimizer": {**config["optimizer"], "warmup_steps": warmup},
        "training": {**config["training"], "steps": steps, "init_from": None},
        "sampling": _sampling(config["sampling"], files),
        "evaluation": config["evaluation"],
    }


def _sampling(sampling: dict[str, Any], files: ParentFiles) -> dict[str, Any]:
    """Return how the parent samples; an earlier checkpoint that guides it stays one of the parent."""
    guide = sampling["autoguidance"]
    if guide is None or guide["run"] is not None:
        return sampling
    return {
        **sampling,
        "autoguidance": {**guide, "run": str(files.loaded.directory.path.resolve())},
    }


def _num_layers(image_size: int) -> int:
    """Return the strided layers of a discriminator of these images: the usual three, or as many as fit."""
    for num_layers in range(MOST_LAYERS, 1, -1):
        try:
            check_image_size(image_size, num_layers)
        except ShapeError:
            continue
        return num_layers
    return 1
