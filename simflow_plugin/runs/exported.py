"""Exported runs: the weights of one checkpoint with what is needed to sample from them, without a training's state.

config.json  config.yaml  [summary.json]  autoencoder/  [model/]

`autoencoder/` and `model/` hold `config.json`, from which the part is built, and its weights in
`diffusion_pytorch_model.safetensors`. config.yaml is the run's own, without folders of the machine that it was trained
on. What diffusers and the Hub read beside it is written in `simflow_plugin.hub`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from simflow_plugin import registry
from simflow_plugin.config.schema import RunConfig
from simflow_plugin.config.validation import validate
from simflow_plugin.config.yaml_source import read_yaml_source
from simflow_plugin.contracts import Autoencoder, DataContext, GenerativeModel, ModelContext
from simflow_plugin.errors import CheckpointError, ConfigError, EvaluationError, WeightsError
from simflow_plugin.files import file_digest, give_usual_mode, read_json_object
from simflow_plugin.registry import Part
from simflow_plugin.runs.checkpoints import Checkpoint
from simflow_plugin.runs.loaded_run import LoadedRun
from simflow_plugin.runs.run_directory import RunDirectory
from simflow_plugin.runs.run_precision import Precision
from simflow_plugin.weights import load_strictly, read_tensors

FORMAT_VERSION = 1
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
AUTOENCODER, MODEL = "autoencoder", "model"
OWN_KEY = "simflow_format"
STATE_KEYS = ("num_classes", "class_names", "seconds", "skipped_steps", "num_images", "run_id")
"""Of a checkpoint's state, kept beside the weights."""


def is_exported(folder: Path) -> bool:
    """Return whether a folder holds an exported run."""
    return (folder / CONFIG).is_file() and (folder / AUTOENCODER / CONFIG).is_file()


def exported_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of the weights of every part of an exported run."""
    files = {part: folder / part / WEIGHTS for part in (AUTOENCODER, MODEL)}
    return {part: file_digest(file) for part, file in files.items() if file.is_file()}


def write_exported(loaded: LoadedRun, folder: Path) -> None:
    """Write the parts of a run into an existing folder, without the alignment head, which only training needs."""
    config, state = loaded.config, loaded.checkpoint.state
    options = state.get("autoencoder_options") or config.autoencoder.options
    shape = loaded.autoencoder.latent_shape(config.image_size)
    part: dict[str, Any] = {"name": config.autoencoder.name, "options": options}
    _write_part(
        folder / AUTOENCODER,
        {**part, "image_size": config.image_size},
        loaded.autoencoder,
        set(loaded.autoencoder.state_dict()),
    )
    if loaded.model is not None and config.model is not None:
        part = {"name": config.model.name, "options": config.model.options}
        part |= {"latent_shape": list(shape), "num_classes": loaded.num_classes}
        with torch.random.fork_rng(devices=[]):
            names = set(build_exported_model(part).state_dict())
        _write_part(folder / MODEL, part, loaded.model, names)
    described = {
        OWN_KEY: FORMAT_VERSION,
        "library_name": "simflow-plugin",
        "step": loaded.checkpoint.step,
        "weights": "averaged" if loaded.averaged else "last",
        "autoencoder_options": without_local_folders(options),
        **{key: state[key] for key in STATE_KEYS if key in state},
    }
    write_json(folder / CONFIG, described)
    cleaned = RunConfig.model_validate(without_local_folders(standing_alone(config).model_dump(mode="json")))
    (folder / "config.yaml").write_text(cleaned.to_yaml(), encoding="utf-8")
    if loaded.directory.summary_file.is_file():
        summary = json.loads(loaded.directory.summary_file.read_text(encoding="utf-8"))
        write_json(folder / loaded.directory.summary_file.name, without_local_folders(summary))


def load_exported(
    folder: Path,
    device: torch.device | str | None = None,
    averaged: bool = True,
    step: int | None = None,
    precision: str | None = None,
    ema_length: float | None = None,
) -> LoadedRun:
    """Load an exported run; the arguments are those of `simflow_plugin.load`.

    Raises:
        CheckpointError: for another step or other weights than the folder holds, or a folder of a later version.
        ConfigError: if its configuration cannot be read.
        WeightsError: if its weights cannot.
    """
    state = read_json_object(folder / CONFIG, CheckpointError)
    if state.get(OWN_KEY, 0) > FORMAT_VERSION:
        raise CheckpointError(
            f"{folder}: exported in format {state[OWN_KEY]}, this version of simflow-plugin reads up to "
            f"{FORMAT_VERSION}. Upgrade simflow-plugin."
        )
    kept = {"step": state.get("step"), "weights": state.get("weights")}
    if (
        step not in (None, kept["step"])
        or averaged != (kept["weights"] == "averaged")
        or ema_length is not None
    ):
        raise CheckpointError(
            f"{folder}: an exported run, which holds step {kept['step']} with {kept['weights']} weights only. Others "
            "are in its run directory."
        )
    # Resolved already, and parts that only training needs, of other packages perhaps, are not looked up.
    source = read_yaml_source(str(folder / "config.yaml"))
    config = validate(RunConfig, source.values, source, ())
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = None
    if config.model is not None:
        model = read_model(folder / MODEL).to(chosen)
    return LoadedRun(
        RunDirectory(folder),
        config,
        Checkpoint(folder, int(state["step"]), {**state, "feature_dim": None}),
        read_autoencoder(folder / AUTOENCODER).to(chosen),
        model,
        averaged,
        Precision.outside_training(config.training, chosen.type, precision),
    )


def read_autoencoder(folder: Path) -> Autoencoder:
    """Build the autoencoder of a folder `autoencoder/`, frozen, on the CPU.

    Raises:
        WeightsError: if it cannot be read.
    """
    described = read_json_object(folder / CONFIG, WeightsError)
    part = Part.model_validate({"name": described["name"], **described["options"]})
    with torch.random.fork_rng(devices=[]):
        autoencoder = part.build(registry.AUTOENCODERS, DataContext(described["image_size"], "train"))
    return _restored(autoencoder, folder)


def read_model(folder: Path) -> GenerativeModel:
    """Build the generative model of a folder `model/`, frozen, on the CPU.

    Raises:
        WeightsError: if it cannot be read.
    """
    with torch.random.fork_rng(devices=[]):
        model = build_exported_model(read_json_object(folder / CONFIG, WeightsError))
    return _restored(model, folder)


def build_exported_model(described: dict[str, Any]) -> GenerativeModel:
    """Build the model that `model/config.json` describes, without its weights."""
    part = Part.model_validate({"name": described["name"], **described["options"]})
    channels, height, width = described["latent_shape"]
    context = ModelContext((channels, height, width), described["num_classes"], None, is_restored=True)
    return part.build(registry.MODELS, context)


def standing_alone(config: RunConfig) -> RunConfig:
    """Return the configuration without autoguidance: an exported folder holds one model, and samples it unguided."""
    if config.sampling.autoguidance is None:
        return config
    sampling = config.sampling.model_copy(update={"autoguidance": None, "guidance": 0.0})
    return config.model_copy(update={"sampling": sampling})


def without_local_folders(value: Any) -> Any:
    """Return `value` with absolute paths in it, at any depth, cut to the name of their file or folder."""
    if isinstance(value, dict):
        return {key: without_local_folders(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_local_folders(entry) for entry in value]
    if not isinstance(value, str):
        return value
    if PureWindowsPath(value).drive:
        return PureWindowsPath(value).name or value
    if value.startswith(("/", "~")) or os.path.isabs(value):
        return PurePosixPath(value).name or value
    return value


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a mapping as JSON."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_part(folder: Path, described: dict[str, Any], module: nn.Module, names: set[str]) -> None:
    state = {name: tensor for name, tensor in module.state_dict().items() if name in names}
    missing = names - state.keys()
    if missing:
        raise EvaluationError(
            f"the {type(module).__name__} that is loaded lacks {sorted(missing)[0]}, which its options ask for; export "
            "the run as it was trained"
        )
    folder.mkdir()
    write_json(folder / CONFIG, without_local_folders(described))
    # Copies: parts of one storage are not what safetensors writes.
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    give_usual_mode(folder)


def _restored(module: Any, folder: Path) -> Any:
    load_strictly(module, read_tensors(folder / WEIGHTS), str(folder / WEIGHTS), "Export the run again")
    return module.eval().requires_grad_(False)


def check_exportable(loaded: LoadedRun) -> None:
    """Refuse parts that the exported folder could not build again.

    Raises:
        ConfigError: for an autoencoder that is built from a file, and does not know its own architecture.
    """
    options = loaded.checkpoint.state.get("autoencoder_options") or loaded.config.autoencoder.options
    if without_local_folders(options) != options:
        raise ConfigError(
            f"{loaded.directory.path}: autoencoder `{loaded.config.autoencoder.name}` needs a file of this machine to "
            "be built, and cannot be exported. Give it `self_contained_options` (simflow_plugin.contracts.Autoencoder)."
        )
