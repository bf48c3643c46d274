"""`simflow patch HOST PATH`: let a host's checkout look up the models of this and other packages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def patch(
    host: Annotated[str | None, typer.Argument(help="For example repa-e; see --list.")] = None,
    path: Annotated[Path | None, typer.Argument(help="Top of the host's git checkout.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Look and change nothing.")] = False,
    revert: Annotated[bool, typer.Option("--revert", help="Take the patch out again.")] = False,
    list_hosts: Annotated[bool, typer.Option("--list", help="Name the hosts and their commits.")] = False,
) -> None:
    """Insert the lines that let a host find plugins, into a checkout at the pinned commit; nothing else changes."""
    from simflow_plugin.errors import HostError
    from simflow_plugin.hosts import patching
    from simflow_plugin.hosts.manifest import find_host, known_hosts

    if list_hosts:
        for name, found in known_hosts().items():
            typer.echo(f"{name:8} {found.repository} at {found.commit}")
        return
    if host is None or path is None:
        raise HostError("patch: expected HOST and PATH, as in `simflow patch repa-e ../REPA-E`; or --list")
    if check and revert:
        raise HostError("patch: --check changes nothing and --revert does; choose one of them")
    found = find_host(host)
    if check:
        states = patching.check(found, path)
        lines = [f"{state:9} {name}" for name, state in states.items()]
        is_patched = set(states.values()) == {"patched"}
        lines.append("patched" if is_patched else "not patched; the patch would apply")
    else:
        written = (patching.revert if revert else patching.apply)(found, path)
        nothing = (
            "not patched, nothing to take out" if revert else f"already patched for {host}, nothing to do"
        )
        lines = [f"wrote {name}" for name in written] or [f"{path}: {nothing}"]
    typer.echo("\n".join(lines))
