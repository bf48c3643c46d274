"""Paths in a configuration: a relative one is meant from the folder that the command runs in, and stored as absolute.

So a run directory finds its data and weights from any folder, and may be moved; where the data moved, `--data-root` (or
`--set data.root=...`) says where it is now.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
NOT_A_PATH = ("http:", "https:", "file:", "pipe:")


def absolute(path: str) -> str:
    """Return a path as absolute, with `~` for the home folder; links in it stay, since they may be moved with it."""
    return os.path.abspath(Path(path).expanduser())


def absolute_if_there(name: str) -> str:
    """Return a path that exists as absolute, and another text, such as a name on a hub or none at all, as it is."""
    try:
        return absolute(name) if name and Path(name).expanduser().exists() else name
    except (OSError, RuntimeError):  # a name too long for a path; a home folder that is unknown
        return name


def absolute_shards(shards: str | list[str]) -> str | list[str]:
    """Return the paths and globs among locations of shards as absolute."""
    if isinstance(shards, list):
        return [shard if shard.startswith(NOT_A_PATH) else absolute(shard) for shard in shards]
    return shards if shards.startswith(NOT_A_PATH) else absolute(shards)


def missing_paths(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, path) of what a configuration names and is not there.

    Absolute paths, globs that match nothing, and names of files of weights; shards with ranges in braces are left out.
    """
    if isinstance(value, dict):
        for name, below in value.items():
            yield from missing_paths(below, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for below in value:
            yield from missing_paths(below, key)
    elif isinstance(value, str) and (os.path.isabs(value) or value.endswith(WEIGHTS)) and "{" not in value:
        is_there = os.path.exists(value) or bool(set(value) & set("*?[") and glob.glob(value))
        yield from () if is_there else ((key, value),)


LocalPath = Annotated[str, AfterValidator(absolute)]
LocalPathOrName = Annotated[str, AfterValidator(absolute_if_there)]
Shards = Annotated[str | list[str], AfterValidator(absolute_shards)]
