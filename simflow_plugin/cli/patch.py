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
    from simflow_plugin.hosts.manifest import find_host

    if list_hosts:
        _print_hosts()
        return
    if host is None or path is None:
        raise HostError("patch: expected HOST and PATH, as in `simflow patch repa-e ../REPA-E`; or --list")
    if check and revert:
        raise HostError("patch: --check changes nothing and --revert does; choose one of them")
    _run(find_host(host), path, check, revert)


def _run(found, path: Path, only_check: bool, is_revert: bool) -> None:
    from simflow_plugin.hosts import patching

    if only_check:
        states = patching.check(found, path)
        for name, state in states.items():
            typer.echo(f"{state:9} {name}")
        typer.echo("patched" if set(states.values()) == {"patched"} else "not patched; the patch would apply")
    elif is_revert:
        _print_written(patching.revert(found, path), f"{path}: not patched, nothing to take out")
    else:
        written = patching.apply(found, path)
        _print_written(written, f"{path}: already patched for {found.host}, nothing to do")


def _print_written(written: list[str], nothing: str) -> None:
    for name in written:
        typer.echo(f"wrote {name}")
    if not written:
        typer.echo(nothing)


def _print_hosts() -> None:
    from simflow_plugin.hosts.manifest import known_hosts

    for name, found in known_hosts().items():
        typer.echo(f"{name:8} {found.repository} at {found.commit}")
