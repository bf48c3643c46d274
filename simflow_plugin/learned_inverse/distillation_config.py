"""The configuration of a student's run, derived from the run of its teacher.

Data, image size, sampling and evaluation are the teacher's, so that the two can be compared; the autoencoder is the
teacher's with averaged weights, frozen; the budget in images is the teacher's unless a configuration says otherwise.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from simflow_plugin.config.loading import config_from_source
from simflow_plugin.config.schema import RunConfig
from simflow_plugin.config.yaml_source import merge_over, read_yaml_source
from simflow_plugin.convert.autoencoder_export import export_autoencoder
from simflow_plugin.errors import ConfigError
from simflow_plugin.files import write_text_atomically
from simflow_plugin.flow import FlowConfig
from simflow_plugin.runs.loaded_run import LoadedRun, load_run
from simflow_plugin.runs.run_directory import RunDirectory

FOLDER = ".teacher"
"""In the student's run directory: the teacher's autoencoder, and the derived configuration. Only training reads it."""


def distillation_config(
    teacher: Path,
    out: RunDirectory,
    user_config: str | None = None,
    overrides: list[str] | None = None,
    step: int | None = None,
) -> RunConfig:
    """Derive, merge and check the configuration of a student.

    Args:
        teacher: run directory.
        out: of the student; the teacher's autoencoder is written into it, once.
        user_config: a YAML file whose keys replace derived ones.
        overrides: `key.sub=value` assignments, applied last.
        step: checkpoint of the teacher; None takes the newest.
    Raises:
        ConfigError: naming the file and the key; if the teacher has no flow.
        CheckpointError: if the teacher has no checkpoint.
    """
    folder = out.path / FOLDER
    base = folder / "base.json"
    if not base.is_file():
        values = _derive(load_run(teacher, "cpu", step=step), folder)
        write_text_atomically(base, json.dumps(values, indent=1) + "\n")
    source = read_yaml_source(str(base))  # JSON is YAML
    given = source.values["model"]["teacher"]["run"]
    if Path(given) != teacher.resolve():
        raise ConfigError(
            f"{out.path}: holds a student of {given}, not of {teacher.resolve()}. Name another directory with --out."
        )
    if user_config is not None:
        source = merge_over(source, read_yaml_source(user_config))
    for assignment in overrides or []:
        source.override(assignment)
    return config_from_source(source)


def _derive(loaded: LoadedRun, folder: Path) -> dict[str, Any]:
    model = loaded.require_model()
    flow = model.token_flow()
    if flow is None:
        raise ConfigError(
            f"{loaded.directory.path}: its model `{getattr(loaded.config.model, 'name', '?')}` has no flow to invert; "
            "name a run of a flow (simflow, starflow)."
        )
    folder.mkdir(parents=True, exist_ok=True)
    config = loaded.config.model_dump(mode="json")
    autoencoder = export_autoencoder(loaded, folder / "autoencoder.safetensors", num_images=None)
    teacher = {"run": str(loaded.directory.path.resolve()), "step": loaded.checkpoint.step}
    return {
        "name": f"{loaded.config.name}-one-pass",
        "seed": config["seed"],
        "image_size": config["image_size"],
        "data": config["data"],
        "autoencoder": autoencoder,
        "model": {
            "name": "learned_inverse",
            "teacher": teacher,
            "student": student_sizes(flow.config),
            "guidance_max": config["sampling"]["guidance"] if model.supports_guidance else 0.0,
        },
        "optimizer": {**config["optimizer"], "autoencoder_lr": None},
        "training": config["training"],
        "sampling": config["sampling"],
        "evaluation": config["evaluation"],
    }


def student_sizes(teacher: FlowConfig) -> dict[str, Any]:
    """Return the default student: at most a third of the teacher's parameters.

    A layer of the student has 18 d^2 parameters (12, and 6 of its modulation), one of the teacher 12 D^2 about. The
    student keeps one layer per block at least, and gives up width before depth.

    Args:
        teacher: configuration of the flow; its width is D.
    """
    width, layers_per_block = teacher.width, teacher.layers_per_block
    budget = 12 * width**2 * sum(layers_per_block) / 3
    depth = max(len(layers_per_block), round(sum(layers_per_block) * 2 / 3))
    heads_of = 32
    own = int((budget / (18 * depth)) ** 0.5) // heads_of * heads_of
    own = max(heads_of, min(own, width))
    return {"width": own, "depth": depth, "num_heads": own // heads_of, "patch_size": teacher.patch_size}
