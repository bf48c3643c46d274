"""`simflow doctor`: devices, packages, data sets and weights of this machine, and remedies for what is missing."""

from __future__ import annotations

import typer


def doctor() -> None:
    """Print what this installation can do here: devices, optional packages, data sets, pretrained weights, parts."""
    from rich.console import Console
    from rich.table import Table

    from simflow_plugin.diagnosis import diagnose

    table = Table(title="simflow doctor", title_justify="left", show_lines=False)
    for column in ("what", "found", "what it means"):
        table.add_column(column, overflow="fold")
    for finding in diagnose():
        table.add_row(finding.what, finding.found, finding.meaning)
    Console().print(table)
    typer.echo("Nothing above is needed for `simflow train quickstart`.")
