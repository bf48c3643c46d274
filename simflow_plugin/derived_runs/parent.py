"""The parent of a run: its weights copied into the new run, and the configuration that is derived from its own.

    OUT/.parent/autoencoder.safetensors  model.safetensors  derived.json

The new run trains from these files and needs the parent's directory no more. `derived.json` keeps where they came from
and the SHA-256 of the checkpoint's manifest, so that a parent that has changed is refused when the command is run
again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from simflow_plugin.config.loading import config_from_source
from simflow_plugin.config.schema import RunConfig
from simflow_plugin.config.yaml_source import YamlSource, merge_over, read_yaml_source
from simflow_plugin.convert.autoencoder_export import export_autoencoder
from simflow_plugin.errors import ConfigError, RunDirectoryError
from simflow_plugin.files import file_digest, read_json_object, replacing, write_text_atomically
from simflow_plugin.runs.checkpoints import MANIFEST, Checkpoint
from simflow_plugin.runs.loaded_run import LoadedRun, find_checkpoint, load_run
from simflow_plugin.runs.run_directory import RunDirectory

FOLDER = ".parent"


@dataclass(frozen=True)
class ParentFiles:
    """Parts that the new run takes from its parent.

    Args:
        loaded: the parent, with averaged weights.
        autoencoder: options of the parent's autoencoder, frozen, read from the copy.
        model: file with the weights of the parent's model, without its alignment head.
        source: run and step, for people.
    """

    loaded: LoadedRun
    autoencoder: dict[str, Any]
    model: Path
    source: str


@dataclass(frozen=True)
class DerivedRun:
    """Arguments of a command that derives a run.

    Args:
        step: checkpoint of the parent; None takes the newest.
        config: a YAML file whose keys replace derived ones, or None.
        overrides: `key.sub=value` assignments, applied last.
    """

    parent: Path
    out: RunDirectory
    step: int | None = None
    config: str | None = None
    overrides: tuple[str, ...] = ()


def derived_config(run: DerivedRun, derive: Callable[[ParentFiles], dict[str, Any]]) -> RunConfig:
    """Return the configuration of the new run, resolved and checked; copy the parent's weights the first time.

    Raises:
        ConfigError: naming the file and the key; or if `out` belongs to another parent, or the parent has changed.
        CheckpointError: if the parent has no checkpoint.
        RunDirectoryError: if `out` cannot be written.
    """
    note = run.out.path / FOLDER / "derived.json"
    if note.is_file():
        derived = _read_note(note)
        _check_parent(run, derived["parent"])
    else:
        derived = _take_over(run, derive)
        write_text_atomically(note, json.dumps(derived, indent=1) + "\n")
    source = YamlSource(derived["values"], {}, f"derived from {derived['parent']['run']}")
    if run.config is not None:
        source = merge_over(source, read_yaml_source(run.config))
    for assignment in run.overrides:
        source.override(assignment)
    return config_from_source(source)


def _read_note(note: Path) -> dict[str, Any]:
    derived = read_json_object(note, ConfigError)
    parent, values = derived.get("parent"), derived.get("values")
    if not (isinstance(parent, dict) and isinstance(values, dict) and {"run", "step"} <= parent.keys()):
        raise ConfigError(
            f"{note}: expected `parent` with `run` and `step`, and `values`. Name another --out."
        )
    return derived


def _take_over(run: DerivedRun, derive: Callable[[ParentFiles], dict[str, Any]]) -> dict[str, Any]:
    loaded = load_run(run.parent, "cpu", step=run.step)
    model = loaded.require_model()
    folder = run.out.path / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirectoryError(
            f"{folder}: cannot be written ({error.strerror}). Name another --out."
        ) from error
    tensors = {
        name: tensor.cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if not name.startswith("alignment.")  # serves training with the alignment's encoder only
    }
    with replacing(folder / "model.safetensors", RunDirectoryError) as part:
        save_file(tensors, part)
    autoencoder = export_autoencoder(loaded, folder / "autoencoder.safetensors", num_images=None)
    identity = _identity(run, loaded.checkpoint)
    source = f"{loaded.config.name} at step {loaded.checkpoint.step}"
    files = ParentFiles(loaded, autoencoder, folder / "model.safetensors", source)
    return {"parent": identity, "values": derive(files)}


def _identity(run: DerivedRun, checkpoint: Checkpoint) -> dict[str, Any]:
    digest = file_digest(checkpoint.path / MANIFEST)
    return {"run": str(run.parent.resolve()), "step": checkpoint.step, "sha256_of_manifest": digest}


def _check_parent(run: DerivedRun, known: dict[str, Any]) -> None:
    if str(run.parent.resolve()) != known["run"]:
        raise ConfigError(
            f"{run.out.path}: was derived from {known['run']}, not from {run.parent.resolve()}. Name another --out."
        )
    if run.step is not None and run.step != known["step"]:
        raise ConfigError(
            f"{run.out.path}: was derived from step {known['step']} of its parent, not {run.step}. Name another --out."
        )
    checkpoint = find_checkpoint(RunDirectory(run.parent), known["step"])
    if _identity(run, checkpoint) != known:
        raise ConfigError(
            f"{run.parent}: its checkpoint of step {known['step']} has changed since {run.out.path} was derived from "
            f"it. Name another --out; or go on with the weights of then: simflow train {run.out.config_file} --out "
            f"{run.out.path}"
        )
