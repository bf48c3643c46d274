"""Trained runs by the name that users have for them: a run directory, an exported folder, a name on the Hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from simflow_plugin.data.disk_cache import fingerprint
from simflow_plugin.errors import ConfigError
from simflow_plugin.runs.checkpoints import MANIFEST
from simflow_plugin.runs.exported import exported_digests, is_exported, load_exported
from simflow_plugin.runs.loaded_run import LoadedRun, load_run

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
"""`owner/name`, or `owner/name@revision`."""


def open_run(
    name: Path | str,
    device: torch.device | str | None = None,
    averaged: bool = True,
    step: int | None = None,
    precision: str | None = None,
    ema_length: float | None = None,
) -> LoadedRun:
    """Load a trained run, wherever it is; the arguments are those of `simflow_plugin.load`.

    Raises:
        ConfigError: if there is no such run, or the Hub cannot be reached.
        CheckpointError: if it has no intact checkpoint, or not that of `step`.
    """
    folder = find_folder(name)
    reader = load_exported if is_exported(folder) else load_run
    return reader(folder, device, averaged, step, precision, ema_length)


def find_folder(name: Path | str) -> Path:
    """Return the folder of a run; one on the Hub is fetched into the usual cache.

    Raises:
        ConfigError: if there is none of that name.
    """
    if Path(name).is_dir():
        return Path(name)
    if not HUB_NAME.fullmatch(str(name)):
        raise ConfigError(
            f"{name}: no such folder; is {name} a run directory? Name one, an exported folder, or `owner/name` on the "
            "Hub."
        )
    repository, _, revision = str(name).partition("@")
    return fetch_from_hub(repository, revision=revision or None)


def checkpoint_digest(folder: Path) -> str:
    """Return 16 hexadecimal digits of the weights in a checkpoint's folder, or an exported run's, wherever it is."""
    manifest = folder / MANIFEST
    facts: dict[str, Any] = (
        {"manifest": manifest.read_text()} if manifest.is_file() else {"exported": exported_digests(folder)}
    )
    return fingerprint(facts)


def fetch_from_hub(repository: str, **options: Any) -> Path:
    """Fetch an exported run from the Hub, or find it in the cache; the options are those of `snapshot_download`.

    Raises:
        ConfigError: if there is none, or the Hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        folder = snapshot_download(repository, **options)
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"{repository}: no such run directory, and not found on the Hub ({type(error).__name__}: {reason}). Check "
            "the name, your connection, and for a private one your login (hf auth login)."
        ) from error
    if not is_exported(Path(folder)):
        raise ConfigError(f"{repository}: not a run that `simflow export` wrote.")
    return Path(folder)
