"""`simflow finetune-decoder RUN`: train the decoder of a run on, encoder and model frozen; a run of its own."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from simflow_plugin.cli.derived_run import DerivedOptions, train_derived
from simflow_plugin.option_groups import grouped


@grouped
def finetune_decoder(
    run: Annotated[Path, typer.Argument(help="Run directory of the first stage, the parent.")],
    out: Annotated[
        Path | None, typer.Option(help="Run directory of the result. Default: RUN-decoder.")
    ] = None,
    *,
    options: DerivedOptions,
) -> None:
    """Train the decoder on posterior draws with the parent's reconstruction losses and an adversarial one.

    Latents and likelihood stay those of the parent. The result is a run: `sample`, `evaluate`, `compare`, `export` take
    it, and the same command goes on where it was stopped. Steps: a tenth of the parent's, or --set training.steps=N.
    """
    from simflow_plugin.derived_runs.decoder_tuning import decoder_values

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    tuned = out if out is not None else run.with_name(f"{run.resolve().name}-decoder")
    train_derived(run, tuned, options, decoder_values)
