"""`simflow export RUN`: the autoencoder of a run, for other runs and other codebases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simflow_plugin.cli.run_options import OverwriteOption
from simflow_plugin.exits import exit_on_user_error


def export(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    out: Annotated[
        Path,
        typer.Option(
            help="FILE.safetensors, FILE.pt (the REPA-E host's layout), or a new folder (diffusers)."
        ),
    ],
    num_images: Annotated[
        int | None,
        typer.Option(min=2, help="Training images that the latents are normalised by; default 5000."),
    ] = None,
    keep_scale: Annotated[
        bool, typer.Option("--keep-scale", help="Keep the latents as the run's own model sees them.")
    ] = False,
    last_weights: Annotated[
        bool, typer.Option("--last-weights", help="Not the averaged (EMA) weights.")
    ] = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Export a run's autoencoder, for `autoencoder.pretrained` or for diffusers.

    Its latents are brought to zero mean and unit variance by channel, unless --keep-scale is given.
    """
    with exit_on_user_error():
        import yaml

        from simflow_plugin.convert.autoencoder_export import NUM_IMAGES, export_autoencoder
        from simflow_plugin.errors import ConfigError
        from simflow_plugin.evaluation.sample_files import check_not_there
        from simflow_plugin.runs.loaded_run import load_run

        if keep_scale and num_images is not None:
            raise ConfigError(
                f"--num-images {num_images} has no effect with --keep-scale. Remove one of them."
            )
        for file in (out, out.with_name(f"{out.stem}-latents-stats.pt")) if out.suffix == ".pt" else (out,):
            check_not_there(file, overwrite)
        count = None if keep_scale else num_images or NUM_IMAGES
        options = export_autoencoder(load_run(run, averaged=not last_weights), out, count)
        example = yaml.safe_dump({"autoencoder": options}, sort_keys=False)
        typer.echo(f"{out}: read it back, frozen, with\n\n{example}")
