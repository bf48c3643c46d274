"""Finding pretrained autoencoders: a checkpoint file, a diffusers folder, or a Hugging Face hub name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from simflow_plugin.autoencoders.architecture import (
    Architecture,
    architecture_from_config,
    architecture_from_state,
)
from simflow_plugin.autoencoders.diffusers_config import config_statistics
from simflow_plugin.autoencoders.network_weights import AutoencoderWeights, read_autoencoder
from simflow_plugin.errors import WeightsError

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
FILE_SUFFIXES = {".pt", ".pth", ".ckpt", ".bin", ".safetensors"}
DIFFUSERS_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
HUB_TIMEOUT = 5.0
"""Seconds until a hub that does not answer counts as unreachable."""


def load_pretrained(
    name: str, subfolder: str | None, layout: str, norm_num_groups: int | None
) -> tuple[Architecture, AutoencoderWeights]:
    """Read an autoencoder and its architecture.

    Args:
        name: a file, a diffusers folder, or a hub name `owner/model`; what is on disk comes first.
        subfolder: of a folder or hub name.
        layout: `auto`, or the layout that must be found.
        norm_num_groups: for a file without it; None for the default.
    Raises:
        WeightsError: if it is missing, unreachable, torn or of another layout.
    """
    path = Path(name).expanduser()
    if path.is_file():
        weights = read_autoencoder(path)
        groups = norm_num_groups
        # The groups of a norm leave no trace in its weights; LDM and diffusers have 32 unless a config.json says more.
        if groups is None and weights.layout != "simflow":
            groups = int((weights.config or {}).get("norm_num_groups", 32))
        architecture = architecture_from_state(weights.state, weights.source, groups)
    elif path.is_dir():
        architecture, weights = _read_diffusers(str(path), subfolder, is_local=True)
    elif HUB_NAME.fullmatch(name) and path.suffix not in FILE_SUFFIXES:
        architecture, weights = _read_hub(name, subfolder)
    else:
        raise WeightsError(f"pretrained: {name}: no such file or folder, and not a hub name like owner/model")
    if layout not in ("auto", weights.layout):
        raise WeightsError(
            f"{weights.source}: found the layout `{weights.layout}`, but pretrained_format is `{layout}`; "
            "set pretrained_format to auto, or name another file"
        )
    return architecture, weights


def _read_hub(name: str, subfolder: str | None) -> tuple[Architecture, AutoencoderWeights]:
    try:
        return _read_diffusers(name, subfolder, is_local=True)
    except OSError:
        pass  # not in the local cache; the hub is asked next
    _check_hub(name)
    try:
        return _read_diffusers(name, subfolder, is_local=False)
    except OSError as error:
        raise WeightsError(
            f"pretrained: https://huggingface.co/{name} (subfolder {subfolder}) gave no diffusers "
            f"autoencoder: {error}. Check the name and the option `subfolder` (often `vae`)"
        ) from error


def _check_hub(name: str) -> None:
    """Ask the hub once: its client would otherwise retry for minutes where there is no internet."""
    import huggingface_hub

    try:
        huggingface_hub.HfApi().model_info(name, timeout=HUB_TIMEOUT)
    except Exception as error:  # its HTTP library's own classes, which differ between its versions
        raise WeightsError(
            f"pretrained: {name} is no file or folder here, is not in the local hub cache, and could not "
            f"be had from https://huggingface.co/{name} ({type(error).__name__}). Without internet, copy "
            "the model's folder to this machine and set `pretrained` to its path"
        ) from error


def _read_diffusers(
    name: str, subfolder: str | None, is_local: bool
) -> tuple[Architecture, AutoencoderWeights]:
    """Read a diffusers folder, or a hub name.

    Raises:
        OSError: if it is a hub name whose files are not in the local cache.
        WeightsError: if a folder is not a diffusers AutoencoderKL, or its weights do not match its config.
    """
    from diffusers import AutoencoderKL

    where = {"subfolder": subfolder, "local_files_only": is_local}
    source = name if subfolder is None else f"{name}/{subfolder}"
    if Path(name).is_dir():
        _check_folder(Path(source))
    try:
        config: dict[str, Any] = dict(AutoencoderKL.load_config(name, **where))
        architecture = architecture_from_config(config, source)
        shift, scale = config_statistics(config, f"{source}/config.json")
        file = _single_file(Path(source))
        if file is not None:
            return architecture, AutoencoderWeights(
                source, "diffusers", read_autoencoder(file).state, shift, scale
            )
        # Copied into memory, not onto the meta device: a tensor that the file lacks must be seen, not
        # filled in.
        network, info = AutoencoderKL.from_pretrained(
            name, output_loading_info=True, low_cpu_mem_usage=False, **where
        )
    except (RuntimeError, ValueError) as error:
        raise WeightsError(f"{source}: weights do not match config.json: {error}") from error
    except OSError as error:
        if not Path(name).is_dir():
            raise
        raise WeightsError(f"{source}: cannot be read, perhaps torn: {error}") from error
    absent = sorted(info["missing_keys"])
    if absent:
        raise WeightsError(
            f"{source}: {len(absent)} tensors are missing from the weights, such as {absent[0]}"
        )
    return architecture, AutoencoderWeights(source, "diffusers", dict(network.state_dict()), shift, scale)


def _single_file(folder: Path) -> Path | None:
    """Return the weights in a folder that is here, or None where diffusers must find them: shards, or on the hub."""
    files = (folder / name for name in DIFFUSERS_FILES)
    return next((file for file in files if file.is_file()), None)


def _check_folder(folder: Path) -> None:
    if (folder / "config.json").is_file():
        return
    hint = (
        "; its `vae` folder has one: set `subfolder: vae`" if (folder / "vae/config.json").is_file() else ""
    )
    raise WeightsError(
        f"{folder}: expected a diffusers folder with config.json and weights, found none{hint}"
    )
