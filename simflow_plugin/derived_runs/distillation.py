"""The configuration of a student's run, derived from the run of its teacher.

Data, image size, sampling and evaluation are the teacher's, so that the two can be compared; the autoencoder is the
teacher's, frozen; the budget in images is the teacher's unless a configuration says otherwise.
"""

from __future__ import annotations

from typing import Any

from simflow_plugin.config.schema import RunConfig
from simflow_plugin.derived_runs.parent import DerivedRun, ParentFiles, derived_config
from simflow_plugin.errors import ConfigError
from simflow_plugin.flow import FlowConfig

CHANNELS_PER_HEAD = 32


def distillation_config(run: DerivedRun) -> RunConfig:
    """Return the configuration of a student of `run.parent`; see `derived_config` for what it raises.

    Raises:
        ConfigError: if the parent's model has no flow.
    """
    return derived_config(run, _derive)


def _derive(files: ParentFiles) -> dict[str, Any]:
    loaded = files.loaded
    model, part = loaded.require_model(), loaded.config.model
    flow = model.token_flow()
    if flow is None or part is None:
        raise ConfigError(
            f"{loaded.directory.path}: its model `{'none' if part is None else part.name}` has no flow to invert; "
            "name a run of a flow (simflow, starflow)."
        )
    config = loaded.config.model_dump(mode="json")
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
            "student": student_sizes(flow.config),
            "guidance_max": config["sampling"]["guidance"] if model.supports_guidance else 0.0,
        },
        "optimizer": {**config["optimizer"], "autoencoder_lr": None},
        "training": config["training"],
        "sampling": config["sampling"],
        "evaluation": config["evaluation"],
    }


def student_sizes(teacher: FlowConfig) -> dict[str, Any]:
    """Return the default student: at most a third of the teacher's parameters, as far as whole heads go.

    A layer of the student has 18 d^2 parameters (12, and 6 of its modulation), one of the teacher 12 D^2 about. The
    student has two thirds of the teacher's layers, one per block at least, and gives up width for the rest.

    Args:
        teacher: configuration of the flow; its width is D.
    """
    layers = sum(teacher.layers_per_block)
    depth = max(teacher.num_blocks, round(layers * 2 / 3))
    widest = (12 * teacher.width**2 * layers / 3 / (18 * depth)) ** 0.5
    width = max(1, min(int(widest), teacher.width) // CHANNELS_PER_HEAD) * CHANNELS_PER_HEAD
    return {
        "width": width,
        "depth": depth,
        "num_heads": width // CHANNELS_PER_HEAD,
        "patch_size": teacher.patch_size,
    }
