"""What git says about a host's checkout."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from simflow_plugin.errors import HostError
from simflow_plugin.hosts.manifest import Manifest


def check_checkout(root: Path, manifest: Manifest) -> None:
    """Refuse a path that is not the top of a git checkout.

    Raises:
        HostError: with the commands that make one.
    """
    remedy = f"Get one with `git clone {manifest.url} && git checkout {manifest.commit}`"
    if not root.is_dir():
        raise HostError(
            f"{root}: there is no such folder; expected a checkout of {manifest.repository}. {remedy}"
        )
    answer = _ask(root, "rev-parse", "--show-toplevel")
    if answer.returncode != 0:
        reason = answer.stderr.strip().splitlines()[:1]
        raise HostError(
            f"{root}: is no git checkout; expected one of {manifest.repository}. {remedy} (git said: {''.join(reason)})"
        )
    top = answer.stdout.strip()
    if Path(top).resolve() != root.resolve():
        raise HostError(
            f"{root}: is inside the checkout {top}; give the top of a checkout of {manifest.repository}"
        )


def check_commit(root: Path, manifest: Manifest) -> None:
    """Refuse another commit than the pinned one, or one that does not descend from it.

    A researcher's own commits on top are welcome: each touched file is compared byte for byte anyway.

    Raises:
        HostError: with both commits.
    """
    head = _git(root, "rev-parse", "--verify", "HEAD")
    if head == manifest.commit:
        return
    if head is not None and _git(root, "merge-base", "--is-ancestor", manifest.commit, head) is not None:
        return
    raise HostError(
        f"{root}: is at commit {head or '(none)'}, but the patch is for {manifest.repository} at {manifest.commit} "
        f"and what builds on it. Run `git -C {root} checkout {manifest.commit}`"
    )


def _git(root: Path, *arguments: str) -> str | None:
    """Return the output of a git command, or None if it fails."""
    answer = _ask(root, *arguments)
    return answer.stdout.strip() if answer.returncode == 0 else None


def _ask(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Inherited from a hook, say, these would point at another repository.
    elsewhere = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    environment = {name: value for name, value in os.environ.items() if name not in elsewhere}
    try:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False, env=environment
        )
    except FileNotFoundError as error:
        raise HostError(
            "git: not found; install it, it tells which commit a host's checkout is at"
        ) from error
