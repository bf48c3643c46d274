"""The configuration of a student's run, derived from the run of its teacher.

Data, image size, sampling and evaluation are the teacher's, so that the two can be compared; the autoencoder is the
teacher's, frozen; the budget in images is the teacher's unless a configuration overrides it.
"""

from __future__ import annotations

from typing import Any

from simflow_plugin.derived_runs.parent import ParentFiles
from simflow_plugin.errors import ConfigError
from simflow_plugin.learned_inverse.student import default_sizes


def student_values(files: ParentFiles) -> dict[str, Any]:
    """Return the values of the configuration of a student, for `derived_config`.

    Raises:
        ConfigError: if the parent's model has no flow.
    """
    loaded = files.loaded
    model, part = loaded.require_model(), loaded.config.model
    flow = model.token_flow()
    if flow is None or part is None:
        raise ConfigError(
            f"{loaded.directory.path}: its model `{'none' if part is None else part.name}` has no flow to invert; "
            "name a run of a flow (simflow, starflow)."
        )
    config = loaded.config.model_dump(mode="json")
    # A student learns guidance by the unconditional half; a weaker model has no part in it.
    guidance = config["sampling"]["guidance"] if model.supports_guidance else 0.0
    return {
        "name": f"{loaded.config.name}-one-pass",
        "seed": config["seed"],
        "image_size": config["image_size"],
        "data": config["data"],
        "autoencoder": files.autoencoder,
        "model": {
            "name": "learned_inverse",
            "teacher": {
                "weights": str(files.model.resolve()),
                "model": config["model"],
                "source": files.source,
            },
            "student": default_sizes(flow.config),
            "guidance_max": guidance,
        },
        "optimizer": {**config["optimizer"], "autoencoder_lr": None},
        "training": {**config["training"], "init_from": None},
        "sampling": {**config["sampling"], "guidance": guidance, "autoguidance": None},
        "evaluation": config["evaluation"],
    }
