"""Applying, checking and reverting a host's patch; all files are checked before any is written.

The git blob id of a touched file gives its state: `original`, `patched`, or `different`.
One different file, and nothing at all is written.
"""

from __future__ import annotations

import os
import shlex
import shutil
import stat
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from simflow_plugin.errors import HostError
from simflow_plugin.hosts.checkout import check_checkout, check_commit
from simflow_plugin.hosts.manifest import HostPatch, blob_id


class FileState(Enum):
    """State of a touched file."""

    ORIGINAL = "original"
    PATCHED = "patched"
    DIFFERENT = "different"
    MISSING = "missing"


@dataclass(frozen=True)
class PatchReport:
    """State of each touched file afterwards, and the files that were written."""

    states: dict[str, FileState]
    written: tuple[str, ...] = ()

    @property
    def is_patched(self) -> bool:
        """True if every touched file is patched."""
        return all(state is FileState.PATCHED for state in self.states.values())


def check(patch: HostPatch, root: Path) -> PatchReport:
    """Look at a checkout without changing it.

    Raises:
        HostError: if the patch neither is applied nor could be.
    """
    states = _states(patch, root)
    _refuse_strangers(patch, root, states)
    changed = [path for path, state in states.items() if state is FileState.ORIGINAL]
    if changed:
        check_commit(root, patch.manifest)
        _check_writable(root, changed)
        for path in changed:
            patch.converted(path, (root / path).read_bytes())
    return PatchReport(states)


def apply(patch: HostPatch, root: Path) -> PatchReport:
    """Insert the patch's lines; on a patched checkout this does nothing.

    Raises:
        HostError: if the path is no checkout, at another commit, or a touched file differs or cannot be written.
            Then the checkout is as it was.
    """
    states = check(patch, root).states
    return _rewrite(patch, root, states, is_revert=False)


def revert(patch: HostPatch, root: Path) -> PatchReport:
    """Take the patch's lines out again, to the byte; on an unpatched checkout this does nothing.

    Raises:
        HostError: as `apply`.
    """
    states = _states(patch, root)
    _refuse_strangers(patch, root, states)
    return _rewrite(patch, root, states, is_revert=True)


def _states(patch: HostPatch, root: Path) -> dict[str, FileState]:
    check_checkout(root, patch.manifest)
    return {path: _state(patch, root, path) for path in patch.manifest.files}


def _state(patch: HostPatch, root: Path, path: str) -> FileState:
    file = root / path
    if not file.is_file():
        return FileState.MISSING
    try:
        found = blob_id(file.read_bytes())
    except OSError as error:
        raise HostError(f"{file}: cannot be read: {error.strerror}") from error
    known = patch.manifest.files[path]
    return {known.before: FileState.ORIGINAL, known.after: FileState.PATCHED}.get(found, FileState.DIFFERENT)


def _refuse_strangers(patch: HostPatch, root: Path, states: dict[str, FileState]) -> None:
    strangers = {
        path: state for path, state in states.items() if state in (FileState.DIFFERENT, FileState.MISSING)
    }
    if not strangers:
        return
    manifest = patch.manifest
    check_commit(root, manifest)  # the likelier cause, if it is one
    listed = ", ".join(f"{path} ({state.value})" for path, state in strangers.items())
    raise HostError(
        f"{root}: not as in {manifest.repository} at {manifest.commit}, with or without this patch: {listed}. "
        "Nothing was changed. Commit or keep your edits elsewhere, run "
        f"`git -C {shlex.quote(str(root))} checkout {manifest.commit} -- {shlex.join(strangers)}`, and try again"
    )


def _rewrite(patch: HostPatch, root: Path, states: dict[str, FileState], is_revert: bool) -> PatchReport:
    """Convert every file that is not converted yet."""
    source = FileState.PATCHED if is_revert else FileState.ORIGINAL
    paths = [path for path, state in states.items() if state is source]
    _check_writable(root, paths)
    converted = {path: patch.converted(path, (root / path).read_bytes(), is_revert) for path in paths}
    _write_all(root, converted)
    return PatchReport({path: _state(patch, root, path) for path in states}, tuple(paths))


def _check_writable(root: Path, paths: list[str]) -> None:
    for path in paths:
        file = root / path
        # The permission bits as well: for the superuser `access` is always true.
        is_writable = os.access(file, os.W_OK) and file.stat().st_mode & (
            stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH
        )
        if not is_writable or not os.access(file.resolve().parent, os.W_OK):
            raise HostError(
                f"{file}: is read-only. Nothing was changed. Run `chmod u+w {shlex.quote(str(file))}` and try again"
            )


def _write_all(root: Path, contents: dict[str, bytes]) -> None:
    """Write every file or none: all beside their targets first, then one rename each."""
    targets = {path: (root / path).resolve() for path in contents}  # through symbolic links
    aside = {path: target.with_name(f".{target.name}.simflow-patch") for path, target in targets.items()}
    before = {path: target.read_bytes() for path, target in targets.items()}
    done: list[str] = []
    try:
        for path, content in contents.items():
            aside[path].write_bytes(content)
            shutil.copymode(targets[path], aside[path])
        for path in contents:
            os.replace(aside[path], targets[path])
            done.append(path)
    except OSError as error:
        for path in done:
            targets[path].write_bytes(before[path])
        raise HostError(f"{root}: {error.filename}: {error.strerror}. Nothing was changed") from error
    finally:
        for file in aside.values():
            file.unlink(missing_ok=True)
