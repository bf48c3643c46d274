"""Checks of a host's checkout: the top of a git repository, at the pinned commit or one that builds on it."""

from __future__ import annotations

from pathlib import Path

from simflow_plugin.errors import HostError
from simflow_plugin.hosts.manifest import Manifest, run_git


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
    answer = run_git(root, "rev-parse", "--show-toplevel")
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
    answer = run_git(root, *arguments)
    return answer.stdout.strip() if answer.returncode == 0 else None
