"""Checks of a host's checkout: the top of a git repository, at the pinned commit or one that builds on it."""

from __future__ import annotations

import shlex
from pathlib import Path

from simflow_plugin.errors import HostError
from simflow_plugin.hosts.manifest import Manifest, run_git


def check_checkout(root: Path, manifest: Manifest) -> None:
    """Refuse a path that is not the top of a git checkout.

    Raises:
        HostError: with the commands that make one.
    """
    remedy = _commands_for_a_checkout(root, manifest)
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
        f"and what builds on it. Run `{_checkout_command(root, manifest)}`"
    )


def _commands_for_a_checkout(root: Path, manifest: Manifest) -> str:
    """Return how to get a checkout, at `root` where nothing is in the way."""
    is_free = not root.exists() or (root.is_dir() and not any(root.iterdir()))
    target = root if is_free else root.with_name(f"{root.resolve().name}-{manifest.host}")
    folder, url = shlex.quote(str(target)), shlex.quote(manifest.url)
    return f"Get one with `git clone {url} {folder} && git -C {folder} checkout {manifest.commit}`"


def _checkout_command(root: Path, manifest: Manifest) -> str:
    """Return how to go to the pinned commit; a shallow clone, or one of a fork, does not hold it yet."""
    git = f"git -C {shlex.quote(str(root))}"
    is_there = _git(root, "cat-file", "-e", f"{manifest.commit}^{{commit}}") is not None
    fetch = "" if is_there else f"{git} fetch {shlex.quote(manifest.url)} {manifest.commit} && "
    return f"{fetch}{git} checkout {manifest.commit}"


def _git(root: Path, *arguments: str) -> str | None:
    """Return the output of a git command, or None if it fails."""
    answer = run_git(root, *arguments)
    return answer.stdout.strip() if answer.returncode == 0 else None
