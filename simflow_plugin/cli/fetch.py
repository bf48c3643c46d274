"""`simflow fetch NAME ...`: published weights into the usual caches, with source, size and checksum shown first."""

from __future__ import annotations

from typing import Annotated

import typer


def fetch(
    names: Annotated[list[str] | None, typer.Argument(help="Of `simflow fetch --list`.")] = None,
    lists: Annotated[bool, typer.Option("--list", help="Print the names, and fetch nothing.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Ask the sources, and fetch nothing.")] = False,
) -> None:
    """Fetch published weights: Inception, LPIPS backbones, frozen encoders; what is there and whole is left."""
    from simflow_plugin.errors import WeightsError
    from simflow_plugin.options import did_you_mean
    from simflow_plugin.published_weights import PUBLISHED

    if lists and names:
        raise WeightsError(
            f"fetch: --list prints all names, and fetches nothing: leave out {', '.join(names)}, or it."
        )
    if lists:
        return _print_table()
    if not names:
        raise WeightsError("fetch: no name is given. `simflow fetch --list` prints them.")
    for name in names:
        if name not in PUBLISHED:
            raise WeightsError(f"fetch: unknown `{name}`.{did_you_mean(name, PUBLISHED)}")
    from simflow_plugin import fetching

    missing = []
    for name in dict.fromkeys(names):
        path = fetching.find(PUBLISHED[name])
        if path is None:
            missing.append(name)
        else:
            typer.echo(f"{name}: {path}, there already, with its checksum")
    offers = {name: fetching.ask(PUBLISHED[name]) for name in missing}  # all, before the first byte of any
    for name, offer in offers.items():
        typer.echo(f"{name}: {offer.describe()}")
    for name, offer in offers.items():
        if not dry_run:
            typer.echo(f"{name}: {fetching.fetch(offer)}")


def _print_table() -> None:
    from simflow_plugin.published_weights import PUBLISHED, FileAtAddress

    for name, entry in PUBLISHED.items():
        if isinstance(entry, FileAtAddress):
            source, checksum = entry.address, f"SHA-256 {entry.sha256_prefix}... (in the published name)"
        else:
            source, checksum = f"the Hub's repository of timm's {entry.model}", "SHA-256 stated by the Hub"
        typer.echo(f"{name:14}{entry.serves}\n{'':14}{source}\n{'':14}{checksum}; size: asked of the source")
