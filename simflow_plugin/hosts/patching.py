"""Applying, checking and reverting a host's patch; all files are checked before any is written.

The git blob id of a touched file gives its state: `original`, `patched`, or `different`.
One different file, and nothing at all is written.
"""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path
from typing import Literal

from simflow_plugin.errors import HostError
from simflow_plugin.hosts.manifest import Manifest, blob_id, run_git

FileState = Literal["original", "patched", "different", "missing"]


def check(host: Manifest, root: Path) -> dict[str, FileState]:
    """Return the state of each touched file of a checkout, without changing it.

    Raises:
        HostError: if the patch neither is applied nor could be.
    """
    states = _states(host, root)
    changed = [path for path, state in states.items() if state == "original"]
    if changed:
        _check_commit(root, host)
        _converted(host, root, changed)
    return states


def apply(host: Manifest, root: Path) -> list[str]:
    """Insert the patch's lines, and return the files that were written: none of a patched checkout.

    Raises:
        HostError: if the path is no checkout, at another commit, or a touched file differs or cannot be written.
            Then the checkout is as it was.
    """
    states = check(host, root)
    paths = [path for path, state in states.items() if state == "original"]
    _write_all(root, _converted(host, root, paths))
    return paths


def revert(host: Manifest, root: Path) -> list[str]:
    """Take the patch's lines out again, to the byte, and return the files that were written.

    Raises:
        HostError: as `apply`.
    """
    paths = [path for path, state in _states(host, root).items() if state == "patched"]
    _write_all(root, _converted(host, root, paths, is_revert=True))
    return paths


def _states(host: Manifest, root: Path) -> dict[str, FileState]:
    """Return the state of each touched file.

    Raises:
        HostError: if the path is no checkout, or a file is neither the host's nor the patched one.
    """
    _check_checkout(root, host)
    states = {path: _state(host, root, path) for path in host.files}
    strangers = {path: state for path, state in states.items() if state in ("different", "missing")}
    if strangers:
        _check_commit(root, host)  # the likelier cause, if it is one
        listed = ", ".join(f"{path} ({state})" for path, state in strangers.items())
        raise HostError(
            f"{root}: not as in {host.repository} at {host.commit}, with or without this patch: {listed}. "
            "Nothing was changed. Commit or keep your edits elsewhere, run "
            f"`git -C {shlex.quote(str(root))} checkout {host.commit} -- {shlex.join(strangers)}`, and try again"
        )
    return states


def _state(host: Manifest, root: Path, path: str) -> FileState:
    file = root / path
    if not file.is_file():
        return "missing"
    try:
        found = blob_id(file.read_bytes())
    except OSError as error:
        raise HostError(f"{file}: cannot be read: {error.strerror}") from error
    states: dict[str, FileState] = {host.files[path].before: "original", host.files[path].after: "patched"}
    return states.get(found, "different")


def _converted(host: Manifest, root: Path, paths: list[str], is_revert: bool = False) -> dict[str, bytes]:
    """Return the new content of files that can be written."""
    for file in (root / path for path in paths):
        # The permission bits as well: for the superuser `access` is always true.
        is_writable = os.access(file, os.W_OK) and file.stat().st_mode & 0o222
        if not is_writable or not os.access(file.resolve().parent, os.W_OK):
            raise HostError(
                f"{file}: is read-only. Nothing was changed. Run `chmod u+w {shlex.quote(str(file))}` and try again"
            )
    return {path: host.converted(path, (root / path).read_bytes(), is_revert) for path in paths}


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


def _check_checkout(root: Path, host: Manifest) -> None:
    """Refuse a path that is not the top of a git checkout, with the commands that make one."""
    remedy = _commands_for_a_checkout(root, host)
    if not root.is_dir():
        raise HostError(
            f"{root}: there is no such folder; expected a checkout of {host.repository}. {remedy}"
        )
    answer = run_git(root, "rev-parse", "--show-toplevel")
    if answer.returncode != 0:
        reason = answer.stderr.strip().splitlines()[:1]
        raise HostError(
            f"{root}: is no git checkout; expected one of {host.repository}. {remedy} (git said: {''.join(reason)})"
        )
    top = answer.stdout.strip()
    if Path(top).resolve() != root.resolve():
        raise HostError(
            f"{root}: is inside the checkout {top}; give the top of a checkout of {host.repository}"
        )


def _check_commit(root: Path, host: Manifest) -> None:
    """Refuse another commit than the pinned one, or one that does not descend from it.

    A researcher's own commits on top are welcome: each touched file is compared byte for byte anyway.
    """
    if _git(root, "merge-base", "--is-ancestor", host.commit, "HEAD") is not None:
        return
    head = _git(root, "rev-parse", "--verify", "HEAD") or "(none)"
    raise HostError(
        f"{root}: is at commit {head}, but the patch is for {host.repository} at {host.commit} "
        f"and what builds on it. Run `{_checkout_command(root, host)}`"
    )


def _commands_for_a_checkout(root: Path, host: Manifest) -> str:
    """Return how to get a checkout, at `root` where nothing is in the way."""
    is_free = not root.exists() or (root.is_dir() and not any(root.iterdir()))
    target = root if is_free else root.with_name(f"{root.resolve().name}-{host.host}")
    folder, url = shlex.quote(str(target)), shlex.quote(host.url)
    return f"Get one with `git clone {url} {folder} && git -C {folder} checkout {host.commit}`"


def _checkout_command(root: Path, host: Manifest) -> str:
    """Return how to go to the pinned commit; a shallow clone, or one of a fork, does not hold it yet."""
    git = f"git -C {shlex.quote(str(root))}"
    is_there = _git(root, "cat-file", "-e", f"{host.commit}^{{commit}}") is not None
    fetch = "" if is_there else f"{git} fetch {shlex.quote(host.url)} {host.commit} && "
    return f"{fetch}{git} checkout {host.commit}"


def _git(root: Path, *arguments: str) -> str | None:
    """Return the output of a git command, or None if it fails."""
    answer = run_git(root, *arguments)
    return answer.stdout.strip() if answer.returncode == 0 else None
