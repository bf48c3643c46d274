"""The model card of an exported run: README.md with the metadata that the Hub reads."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jinja2
import yaml

from simflow_plugin import __version__
from simflow_plugin.evaluation.report.metric_names import metric_name
from simflow_plugin.runs.environment import read_environments
from simflow_plugin.runs.exported import without_local_folders
from simflow_plugin.runs.loaded_run import LoadedRun

MOST_CLASSES = 20
TASK = "unconditional-image-generation"  # the Hub's name for models that take no text


def model_card(loaded: LoadedRun, summary: dict[str, Any], licence: str | None, has_picture: bool) -> str:
    """Return the text of README.md.

    Args:
        loaded: the run.
        summary: content of its summary.json; {} where nothing was measured.
        licence: identifier of the Hub (`apache-2.0`, ...); None leaves the field to the owner.
        has_picture: whether `samples.png` lies beside it.
    """
    config = loaded.config
    name = config.model.name if config.model is not None else "autoencoder"
    head: dict[str, Any] = {"library_name": "simflow-plugin", "pipeline_tag": TASK}
    head["tags"] = ["simflow-plugin", name, *(["diffusers"] if config.model is not None else [])]
    if licence is not None:
        head["license"] = licence
    options = without_local_folders(config.data.options)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("model_card.jinja").render(
        head=yaml.safe_dump(head, sort_keys=False),
        loaded=loaded,
        config=config,
        state=loaded.checkpoint.state,
        step=f"{loaded.checkpoint.step:,}",
        name=name,
        latent_shape=loaded.autoencoder.latent_shape(config.image_size),
        options=", ".join(f"{key}: {value}" for key, value in options.items() if value is not None),
        first_class=loaded.class_names and repr(loaded.class_names[0]),
        most_classes=MOST_CLASSES,
        summary=summary,
        rows=_measured(summary),
        started=next(reversed(read_environments(loaded.directory.environment_file)), None),
        version=__version__,
        licence=licence,
        has_picture=has_picture,
    )


def _measured(summary: dict[str, Any]) -> list[tuple[str, float, str]]:
    """Return name, value and origin of each metric."""
    return [
        (metric_name(key).title, summary[key], on)
        for key, on in summary.get("measured_on", {}).items()
        if isinstance(summary.get(key), (int, float)) and math.isfinite(summary[key])
    ]
