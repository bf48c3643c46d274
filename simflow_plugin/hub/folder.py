"""Export of a run to a folder that simflow_plugin, diffusers and the Hub read.

What `simflow_plugin.runs.exported` writes, and: README.md, model_index.json, pipeline.py and simflow_part.py for
diffusers, environment.json, samples.png.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from simflow_plugin.errors import EvaluationError
from simflow_plugin.files import read_json_object
from simflow_plugin.hub.components import FILE, SOURCE, AutoencoderFolder, ModelFolder
from simflow_plugin.hub.model_card import model_card
from simflow_plugin.runs.exported import (
    AUTOENCODER,
    MODEL,
    check_exportable,
    standing_alone,
    write_exported,
    write_json,
)
from simflow_plugin.runs.loaded_run import LoadedRun

PIPELINE = "pipeline"  # the name that diffusers looks for
PIPELINE_SOURCE = '''"""The pipeline of this folder; needs the package: pip install simflow-plugin."""

from simflow_plugin.hub.pipeline import SimFlowPipeline

__all__ = ["SimFlowPipeline"]
'''
PICTURE = "samples.png"

log = logging.getLogger(__name__)


def export_run(loaded: LoadedRun, folder: Path, licence: str | None = None) -> None:
    """Write a run into an existing, empty folder; `licence` is an identifier of the Hub, None leaves it open.

    Raises:
        ConfigError: if a part needs a file of this machine to be built.
    """
    check_exportable(loaded)
    guide = loaded.config.sampling.autoguidance
    if guide is not None:
        log.warning(
            "%s: sampled with autoguidance by %s; the folder holds one model, and samples at guidance 0",
            loaded.directory.path,
            guide,
        )
    write_exported(loaded, folder)
    if loaded.model is not None:
        _write_for_diffusers(loaded, folder)
    if loaded.directory.environment_file.is_file():
        shutil.copyfile(loaded.directory.environment_file, folder / loaded.directory.environment_file.name)
    picture = _picture(loaded)
    if picture is not None:
        shutil.copyfile(picture, folder / PICTURE)
    summary = folder / loaded.directory.summary_file.name
    numbers = read_json_object(summary, EvaluationError) if summary.is_file() else {}
    card = model_card(loaded, numbers, licence, picture is not None)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _write_for_diffusers(loaded: LoadedRun, folder: Path) -> None:
    import diffusers

    config = loaded.config
    for part, loader in ((AUTOENCODER, AutoencoderFolder), (MODEL, ModelFolder)):
        (folder / part / f"{FILE}.py").write_text(SOURCE.format(name=loader.__name__), encoding="utf-8")
    (folder / f"{PIPELINE}.py").write_text(PIPELINE_SOURCE, encoding="utf-8")
    names = loaded.known_class_names
    index = {
        "_class_name": [PIPELINE, "SimFlowPipeline"],
        "_diffusers_version": diffusers.__version__,
        AUTOENCODER: [FILE, AutoencoderFolder.__name__],
        MODEL: [FILE, ModelFolder.__name__],
        "image_size": config.image_size,
        # A mapping: diffusers takes every list of this file for a component.
        "class_names": None if names is None else {str(number): name for number, name in enumerate(names)},
        "guidance": standing_alone(config).sampling.guidance,
        "precision": loaded.precision.name,
        "tf32": config.training.tf32,
        "batch_size": config.sampling.batch_size,
    }
    write_json(folder / "model_index.json", index)


def _picture(loaded: LoadedRun) -> Path | None:
    """Return the newest sample grid of a run, or the picture of an exported one."""
    exported = loaded.directory.path / PICTURE
    grids = sorted(loaded.directory.samples.glob("step_*.png"))
    return grids[-1] if grids else (exported if exported.is_file() else None)
