"""`simflow convert`: conversion of other codebases' weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[str, typer.Option("--from", help="ml-starflow, ml-tarflow or repa-e.")],
    checkpoint: Annotated[
        Path, typer.Option(help="safetensors, or a file of torch.save; no code in it is run.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; new or empty.")],
    config: Annotated[
        Path | None, typer.Option(help="YAML or JSON: the peer's constructor arguments as a mapping.")
    ] = None,
) -> None:
    """Convert a checkpoint; simflow_plugin.convert.load_converted(OUT) reads the result."""
    from simflow_plugin.convert.foreign_checkpoint import convert_checkpoint

    typer.echo(convert_checkpoint(source, checkpoint, config, out))
