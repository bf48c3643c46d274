"""What is known of a host: where it comes from, its pinned commit, and each touched file before and after.

A manifest is `patches/<host>/manifest.json`; `files` maps a path in the host's checkout to the patch beside the
manifest and to the git blob ids of the file without and with it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints, ValidationError

from simflow_plugin.errors import HostError
from simflow_plugin.hosts.insertions import Insertion, insert, parse_patch, remove
from simflow_plugin.options import Options, did_you_mean
from simflow_plugin.resources import resource_dir

MANIFEST_NAME = "manifest.json"
ObjectId = Annotated[str, StringConstraints(pattern="^[0-9a-f]{40}$")]


class TouchedFile(Options):
    """One file of the host: its patch, and its blob ids."""

    patch: str = Field(description="Name of the patch file, beside the manifest.")
    before: ObjectId = Field(description="Git blob id of the host's own file.")
    after: ObjectId = Field(description="Git blob id of the patched file.")


class Manifest(Options):
    """A host at one commit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field(description="The name on the command line.")
    repository: str = Field(description="owner/name, for people.")
    url: str = Field(description="What to clone.")
    commit: ObjectId = Field(description="The commit that the patch is written for.")
    files: dict[str, TouchedFile] = Field(min_length=1)


@dataclass(frozen=True)
class HostPatch:
    """A manifest with the folder that it was read from."""

    manifest: Manifest
    folder: Path

    def insertions(self, path: str) -> list[Insertion]:
        """Return what is inserted into the host's file `path`."""
        name = self.folder / self.manifest.files[path].patch
        try:
            return parse_patch(name.read_bytes(), str(name))
        except OSError as error:
            raise HostError(
                f"{name}: cannot be read ({error.strerror}); install simflow-plugin again"
            ) from error

    def patched(self, path: str, original: bytes) -> bytes:
        """Return the content of `path` with the insertions; `original` is the file of the pinned commit."""
        return self._checked(path, insert(original, self.insertions(path)), self.manifest.files[path].after)

    def restored(self, path: str, patched: bytes) -> bytes:
        """Return the content of `path` without the insertions."""
        return self._checked(path, remove(patched, self.insertions(path)), self.manifest.files[path].before)

    def _checked(self, path: str, content: bytes, expected: str) -> bytes:
        if blob_id(content) != expected:
            raise HostError(
                f"{self.folder / MANIFEST_NAME}: the patch of {path} gives {blob_id(content)}, but the manifest "
                f"says {expected}. The installed patches are damaged: install simflow-plugin again"
            )
        return content


def blob_id(content: bytes) -> str:
    """Return git's name for a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def known_hosts(folder: Path | None = None) -> dict[str, HostPatch]:
    """Return every host by name.

    Args:
        folder: that holds one folder for each host; None for the one that ships with the package.
    Raises:
        HostError: if a manifest is not one.
    """
    folder = resource_dir("patches") if folder is None else folder
    patches = [read_manifest(path) for path in sorted(folder.glob(f"*/{MANIFEST_NAME}"))]
    return {patch.manifest.host: patch for patch in patches}


def find_host(name: str, folder: Path | None = None) -> HostPatch:
    """Return the host called `name`.

    Raises:
        HostError: if there is none.
    """
    hosts = known_hosts(folder)
    if name not in hosts:
        raise HostError(f"unknown host `{name}`.{did_you_mean(name, hosts)}")
    return hosts[name]


def read_manifest(path: Path) -> HostPatch:
    """Read one manifest.

    Raises:
        HostError: if it is not JSON or lacks something.
    """
    try:
        return HostPatch(Manifest.model_validate(json.loads(path.read_bytes())), path.parent)
    except (OSError, ValueError, ValidationError) as error:
        raise HostError(f"{path}: is no manifest of a host: {error}") from error
