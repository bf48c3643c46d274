"""`simflow export RUN`: a run for the Hub and diffusers, or its autoencoder for other runs and other codebases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simflow_plugin.cli.run_options import RUN_HELP, OverwriteOption
from simflow_plugin.errors import ConfigError

if TYPE_CHECKING:
    from simflow_plugin.runs.loaded_run import LoadedRun


def export(
    run: Annotated[Path, typer.Argument(help=f"{RUN_HELP}.")],
    out: Annotated[
        Path,
        typer.Option(
            help="A new folder; or for the autoencoder alone FILE.safetensors, FILE.pt (the REPA-E host's layout)."
        ),
    ],
    autoencoder: Annotated[
        bool, typer.Option("--autoencoder", help="The folder is a diffusers AutoencoderKL, and nothing else.")
    ] = False,
    licence: Annotated[
        str | None, typer.Option("--license", help="For the model card: apache-2.0, cc-by-nc-4.0, ...")
    ] = None,
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
    space: Annotated[
        bool,
        typer.Option(
            "--space", help="Also what a Space of the Hub needs to serve the page of `simflow app`."
        ),
    ] = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Export a run to a folder: weights, configuration and card, which `simflow_plugin.load` and diffusers read.

    With --autoencoder or a file name it is the autoencoder alone, for `autoencoder.pretrained` or diffusers'
    AutoencoderKL; its latents are brought to zero mean and unit variance by channel, unless --keep-scale is given.
    """
    from simflow_plugin.evaluation.sample_files import check_not_there
    from simflow_plugin.files import check_new_folder
    from simflow_plugin.runs.sources import open_run

    if not (autoencoder or out.suffix):
        _refuse({"--num-images": num_images, "--keep-scale": keep_scale or None}, "without --autoencoder")
        check_new_folder(out)
        _export_run(open_run(run, averaged=not last_weights), out, licence, space)
        return
    _refuse({"--license": licence, "--space": space or None}, "with the autoencoder alone")
    if keep_scale:
        _refuse({"--num-images": num_images}, "with --keep-scale")
    for file in (out, out.with_name(f"{out.stem}-latents-stats.pt")) if out.suffix == ".pt" else (out,):
        check_not_there(file, overwrite)
    _export_autoencoder(open_run(run, averaged=not last_weights), out, num_images, keep_scale)


def _refuse(options: dict[str, Any], beside: str) -> None:
    """Refuse options that change nothing beside others."""
    for option, value in options.items():
        if value is not None:
            shown = option if value is True else f"{option} {value}"
            raise ConfigError(f"{shown} has no effect {beside}. Remove one of them.")


def _export_run(loaded: LoadedRun, out: Path, licence: str | None, space: bool) -> None:
    from simflow_plugin.files import filling
    from simflow_plugin.hub.folder import export_run

    with filling(out) as folder:
        export_run(loaded, folder, licence)
        if space:
            from simflow_plugin.app.space import add_space

            add_space(loaded, folder)
    lines = [f'simflow_plugin.load("{out}")']
    if loaded.model is not None:
        lines.append(f'diffusers.DiffusionPipeline.from_pretrained("{out}", trust_remote_code=True)')
    kind = " --repo-type space" if space else ""
    lines.append(f"hf upload{kind} OWNER/NAME {out}        # to publish it; edit README.md, the card, before")
    typer.echo(
        "\n".join(
            [f"{out}: step {loaded.checkpoint.step}, {loaded.weights_name} weights; read it with", *lines]
        )
    )


def _export_autoencoder(loaded: LoadedRun, out: Path, num_images: int | None, keep_scale: bool) -> None:
    import yaml

    from simflow_plugin.convert.autoencoder_export import NUM_IMAGES, export_autoencoder

    options = export_autoencoder(loaded, out, None if keep_scale else num_images or NUM_IMAGES)
    example = yaml.safe_dump({"autoencoder": options}, sort_keys=False)
    typer.echo(f"{out}: read it back, frozen, with\n\n{example}")
