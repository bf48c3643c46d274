"""`simflow app RUN`: a page in the browser for one trained run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simflow_plugin.cli.run_options import RUN_HELP, EmaLengthOption, LastWeightsOption, PrecisionOption


def serve(
    run: Annotated[Path, typer.Argument(help=f"{RUN_HELP}.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; the default is reached from this machine only.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Default: the first free one from 7860 on.")
    ] = None,
    step: Annotated[int | None, typer.Option(min=0, help="Of the checkpoint; default: the newest.")] = None,
    last_weights: LastWeightsOption = False,
    precision: PrecisionOption = None,
    ema_length: EmaLengthOption = None,
) -> None:
    """Serve a page: samples by class, guidance and seed; likelihood and classes of an image; interpolations.

    It needs the extra `app`. Nobody is asked for a password: whoever reaches the address may use the page.
    """
    from simflow_plugin.app.page import serve as serve_page

    serve_page(
        run, host, port, step=step, averaged=not last_weights, precision=precision, ema_length=ema_length
    )
