"""Manifest of a host: repository, pinned commit, and the git blob of each touched file before and after its patch.

A manifest is `patches/<host>/manifest.json`; `files` maps a path in the host's checkout to the patch beside the
manifest and to the git blob ids of the file without and with it.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, ValidationError

from simflow_plugin.errors import HostError
from simflow_plugin.files import read_json_object
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
    """A host at one commit, and its patches."""

    host: str = Field(description="The name on the command line.")
    repository: str = Field(description="owner/name, for people.")
    url: str = Field(description="What to clone.")
    commit: ObjectId = Field(description="The commit that the patch is written for.")
    files: dict[str, TouchedFile] = Field(min_length=1)
    folder: Path = Field(description="Where the manifest and its patches lie; not written in it.")

    def converted(self, path: str, content: bytes, is_revert: bool = False) -> bytes:
        """Return the content of the host's file `path` with the patch, or with `is_revert` without it.

        Raises:
            HostError: if git is missing, or the result is not the blob that the manifest names.
        """
        known = self.files[path]
        expected, patch = known.before if is_revert else known.after, self.folder / known.patch
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch, path)
            copy.parent.mkdir(parents=True, exist_ok=True)  # a file at the root lies in the folder itself
            copy.write_bytes(content)
            # No context: each patch is made for one blob, so that line numbers are enough.
            options = ["--unidiff-zero", "--whitespace=nowarn", *(["--reverse"] if is_revert else [])]
            # In a repository of its own: below another one, git would leave out files that are not that one's.
            run_git(Path(scratch), "init", "--quiet")
            answer = run_git(Path(scratch), "apply", *options, str(patch.resolve()))
            result = copy.read_bytes()
        if answer.returncode != 0 or blob_id(result) != expected:
            reason = "".join(answer.stderr.strip().splitlines()[:1]) or f"gives the blob {blob_id(result)}"
            raise HostError(
                f"{patch}: does not make {path} the blob {expected} of {self.folder / MANIFEST_NAME}: {reason}. The "
                "installed patches are damaged: install simflow-plugin again"
            )
        return result


def blob_id(content: bytes) -> str:
    """Return git's name for a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def run_git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run git in a folder, and return its answer, whatever its exit status.

    Raises:
        HostError: if there is no git.
    """
    # Inherited from a git hook, these would point at another repository.
    elsewhere = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")
    environment = {name: value for name, value in os.environ.items() if name not in elsewhere}
    # A user's settings must not change a byte of what is applied.
    settings = [
        word for name in ("core.autocrlf", "apply.ignoreWhitespace") for word in ("-c", f"{name}=false")
    ]
    command = ["git", "-C", str(folder), *settings, *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    except FileNotFoundError as error:
        raise HostError(
            "git: not found; install it: it names a checkout's commit and applies patches"
        ) from error


def known_hosts() -> dict[str, Manifest]:
    """Return every host that ships with the package, by name.

    Raises:
        HostError: if a manifest is not one.
    """
    manifests = map(read_manifest, sorted(resource_dir("patches").glob(f"*/{MANIFEST_NAME}")))
    return {manifest.host: manifest for manifest in manifests}


def find_host(name: str) -> Manifest:
    """Return the host called `name`.

    Raises:
        HostError: if there is none.
    """
    hosts = known_hosts()
    if name not in hosts:
        raise HostError(f"unknown host `{name}`.{did_you_mean(name, hosts)}")
    return hosts[name]


def read_manifest(path: Path) -> Manifest:
    """Read one manifest.

    Raises:
        HostError: if it is not JSON or lacks something.
    """
    try:
        return Manifest.model_validate({**read_json_object(path, HostError), "folder": path.parent})
    except ValidationError as error:
        raise HostError(f"{path}: is no manifest of a host: {error}") from error
