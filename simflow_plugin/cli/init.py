"""`simflow init FOLDER`: look at images and write a configuration that trains here in a stated time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simflow_plugin.cli.run_options import OverwriteOption


def init(
    folder: Annotated[Path, typer.Argument(help="Images: one subfolder per class, or none.")],
    out: Annotated[
        Path | None, typer.Option(help="File to write; default: FOLDER's name with .yaml, here.")
    ] = None,
    minutes: Annotated[
        float, typer.Option(min=0.1, help="That training with samples and report may take here.")
    ] = 10.0,
    image_size: Annotated[
        int | None, typer.Option(help="16, 32, 64, 128 or 256 pixels; default: by images and device.")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Look at a folder of images, time a few steps, and write a configuration to train with here."""
    from simflow_plugin.errors import ConfigError
    from simflow_plugin.evaluation.sample_files import check_not_there
    from simflow_plugin.files import replacing
    from simflow_plugin.starter.first_configuration import first_configuration
    from simflow_plugin.starter.folder_facts import look_at

    path = out if out is not None else Path(f"{_name(folder)}.yaml")
    check_not_there(path, overwrite)
    if not path.parent.is_dir():  # a typing error must not make a folder
        raise ConfigError(f"--out {path}: there is no folder {path.parent}. Make it, or name another file.")
    facts = look_at(folder)
    typer.echo("\n".join(facts.lines()))
    typer.echo("timing a few steps ...", err=True)
    text, summary = first_configuration(_name(folder), facts, minutes, image_size)
    with replacing(path, ConfigError) as part:
        part.write_text(text, encoding="utf-8")
    typer.echo(f"{summary}\nwrote {path}; now: simflow train {path}")


def _name(folder: Path) -> str:
    """Return a name for run and file: of a folder called `train` or `images`, it is the name of the folder above."""
    resolved = folder.expanduser().resolve()
    name = resolved.parent.name if resolved.name.lower() in ("train", "images", "data") else resolved.name
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip("-.") or "images"
